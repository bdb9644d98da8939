"""Writes the fixtures beside it, each with the library that its format comes from; see README.md.

    python tests/data/video/write.py npz bair rlds robonet ssv2 lerobot

Two episodes a format. Frame t of episode e is one colour, (60 e + 40, 40 t, 120), and action and reward tell the same
numbers, so that a test sees whether a reader mixes anything up.
"""

import importlib.machinery
import io
import json
import sys
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEIGHT, WIDTH = 32, 48


def length(episode: int) -> int:
    return 4 + episode


def frames(episode: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (T, height, width, 3)"""
    images = np.zeros((length(episode), height, width, 3), np.uint8)
    images[..., 0], images[..., 2] = 60 * episode + 40, 120
    images[..., 1] = 40 * np.arange(length(episode))[:, None, None]
    return images


def actions(episode: int, size: int = 3, steps: int | None = None) -> np.ndarray:
    """float32 (T, size): action t of episode e is (e, t, 0, ...)."""
    values = np.zeros((length(episode) if steps is None else steps, size), np.float32)
    values[:, 0], values[:, 1] = episode, np.arange(len(values))
    return values


def rewards(episode: int) -> np.ndarray:
    return (10 * episode + np.arange(length(episode))).astype(np.float32)


def npz() -> None:
    """As thuml/iVideoGPT's datasets/preprocess_bair.py writes BAIR: int64 images of two cameras."""
    folder = HERE / "npz" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for e in range(2):
        images = frames(e, 16, 16).astype(np.int64)
        np.savez_compressed(folder / f"traj_{e:05d}.npz", image=images, action=actions(e), aux1_image=255 - images)


def bair() -> None:
    import tensorflow as tf

    folder = HERE / "bair" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "traj_0_to_1.tfrecords")) as writer:
        for e in range(2):
            feature = {}
            for t, (image, action) in enumerate(zip(frames(e, 64, 64)[:3], actions(e, 4), strict=False)):
                raw = tf.train.BytesList(value=[image.tobytes()])
                feature[f"{t}/image_aux1/encoded"] = tf.train.Feature(bytes_list=raw)
                feature[f"{t}/action"] = tf.train.Feature(float_list=tf.train.FloatList(value=action))
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def rlds() -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    class ToyRobot(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("0.1.0")

        def _info(self):
            step = {
                "observation": {
                    "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg"),
                    "wrist": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                },
                "action": {
                    "world_vector": tfds.features.Tensor(shape=(2,), dtype=tf.float32),
                    "open_gripper": tfds.features.Tensor(shape=(), dtype=tf.bool),
                    "rotation": tfds.features.Tensor(shape=(1,), dtype=tf.float64),
                },
                "reward": tf.float32,
                "is_last": tf.bool,
                "language_instruction": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_id": tf.string})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for e in range(2):
                steps = [
                    {
                        "observation": {"image": image, "wrist": image[:8, :8]},
                        "action": {"world_vector": action[:2], "open_gripper": t % 2 == 1, "rotation": [-0.5]},
                        "reward": reward,
                        "is_last": t == length(e) - 1,
                        "language_instruction": "do it",
                    }
                    for t, (image, action, reward) in enumerate(zip(frames(e), actions(e), rewards(e), strict=True))
                ]
                yield e, {"steps": steps, "episode_id": str(e)}

    ToyRobot(data_dir=HERE / "rlds").download_and_prepare()


def encode(images: np.ndarray, container: str, codec: str, file: object, **options: str) -> None:
    """Images (T, height, width, 3) as video at 10 frames a second."""
    import av

    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))


def jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def robonet() -> None:
    """As SudeepDasari/RoboNet reads it: one file with an MP4 and a gripper that closes by itself, one with JPEGs."""
    import h5py

    folder = HERE / "robonet"
    folder.mkdir(exist_ok=True)
    for e, name in enumerate(("penn_traj0.hdf5", "sawyer_traj1.hdf5")):
        with h5py.File(folder / name, "w") as file:
            file["file_version"] = "0.1.0"
            file.create_group("misc")
            file["policy/actions"] = actions(e, 4 - e, length(e) - 1)
            state = np.zeros((length(e), 5), np.float32)
            state[:, -1] = np.arange(length(e)) % 2  # the gripper opens and closes
            file["env/state"] = state
            file["env/low_bound"], file["env/high_bound"] = np.zeros((1, 5)), np.array([[1, 1, 1, 1, 0.9]])
            file["env"].attrs.update(n_cams=1, cam_encoding="jpg" if e else "mp4")
            file.create_group("metadata").attrs.update(primitives="" if e else "autograsp", robot=name.split("_")[0])
            if e:
                for t, image in enumerate(frames(e)):
                    data = file.create_dataset(
                        f"env/cam0_video/frame{t}", data=np.frombuffer(jpeg(image[..., ::-1]), np.uint8)
                    )
                    data.attrs.update(shape=image.shape, image_format="BGR")
            else:
                video = io.BytesIO()
                encode(frames(e), "mp4", "libx264", video, crf="10")
                data = file.create_dataset("env/cam0_video/frames", data=np.frombuffer(video.getvalue(), np.uint8))
                data.attrs.update(shape=frames(e).shape[1:], T=length(e), image_format="RGB")


def ssv2() -> None:
    """Clip 7 as downloaded, clip 12 and 13 as folders of frames; labels under their official names."""
    folder = HERE / "ssv2" / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    encode(frames(0), "webm", "libvpx-vp9", str(folder / "7.webm"), crf="10")
    for number, e in ((12, 1), (13, 0)):
        (folder / str(number)).mkdir(exist_ok=True)
        for t, image in enumerate(frames(e)):
            (folder / str(number) / f"{t + 1:06d}.jpg").write_bytes(jpeg(image))
    labels = folder.parent / "labels"
    labels.mkdir(exist_ok=True)
    classes = {"Closing something": "5", "Pouring something into something": "59"}
    clips = {7: "Closing [something]", 12: "Closing [something]", 13: "Pouring [something] into [something]"}
    listed = [{"id": str(number), "label": "", "template": template} for number, template in clips.items()]
    (labels / "labels.json").write_text(json.dumps(classes))
    (labels / "train.json").write_text(json.dumps(listed[1:]))
    (labels / "validation.json").write_text(json.dumps(listed[:1]))


def lerobot() -> None:
    """Both episodes in one table and one AV1 video, as the library decides."""
    # LeRobot reads with torchvision, and the releases that it asks for need an older torch.
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, camera = HERE / "lerobot", "observation.images.top"
    features = {
        camera: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("toy/robot", fps=10, features=features, root=folder)
    for e in range(2):
        for image, action, reward in zip(frames(e), actions(e), rewards(e), strict=True):
            dataset.add_frame({camera: image, "action": action, "next.reward": reward[None], "task": "do it"})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {f.__name__: f for f in (npz, bair, rlds, robonet, ssv2, lerobot)}[name]()
