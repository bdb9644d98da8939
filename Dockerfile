# Everything that training and its tests need, with drawing by EGL.
#     docker build -t ivideogpt-mbrl .              --build-arg TORCH_INDEX=<url> takes torch from a package index of its builds
#     docker run --rm -v "$PWD/runs:/app/runs" ivideogpt-mbrl train TASK=coffee-push
#     docker run --rm --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all -v "$PWD/runs:/app/runs" ivideogpt-mbrl train TASK=coffee-push
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libegl1 libgl1-mesa-dri libopengl0 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
ARG TORCH_INDEX
RUN make setup
ENTRYPOINT ["make"]
CMD ["help"]
