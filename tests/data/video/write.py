"""Writes the fixtures beside it, each with the library that its format comes from; see README.md.

    python tests/data/video/write.py npz bair rlds robonet ssv2 lerobot

Two episodes a format. Frame t of episode e is one colour, (60 e + 40, 40 t, 120), and action and reward tell the same
numbers, so that a test sees whether a reader mixes anything up.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEIGHT, WIDTH = 32, 48


def length(episode: int) -> int:
    return 4 + episode


def frames(episode: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (T, height, width, 3)"""
    pictures = np.zeros((length(episode), height, width, 3), np.uint8)
    pictures[..., 0], pictures[..., 2] = 60 * episode + 40, 120
    pictures[..., 1] = 40 * np.arange(length(episode))[:, None, None]
    return pictures


def actions(episode: int, size: int = 3, steps: int | None = None) -> np.ndarray:
    """float32 (T, size): action t of episode e is (e, t, 0, ...)."""
    values = np.zeros((length(episode) if steps is None else steps, size), np.float32)
    values[:, 0], values[:, 1] = episode, np.arange(len(values))
    return values


def rewards(episode: int) -> np.ndarray:
    return (10 * episode + np.arange(length(episode))).astype(np.float32)


def npz() -> None:
    """As thuml/iVideoGPT's datasets/preprocess_bair.py writes BAIR: int64 pictures of two cameras."""
    folder = HERE / "npz" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for e in range(2):
        pictures = frames(e, 16, 16).astype(np.int64)
        np.savez_compressed(folder / f"traj_{e:05d}.npz", image=pictures, action=actions(e), aux1_image=255 - pictures)


def bair() -> None:
    import tensorflow as tf

    folder = HERE / "bair" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "traj_0_to_1.tfrecords")) as writer:
        for e in range(2):
            feature = {}
            for t, (picture, action) in enumerate(zip(frames(e, 64, 64)[:3], actions(e, 4), strict=False)):
                raw = tf.train.BytesList(value=[picture.tobytes()])
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
                        "observation": {"image": picture, "wrist": picture[:8, :8]},
                        "action": {"world_vector": action[:2], "open_gripper": t % 2 == 1, "rotation": [-0.5]},
                        "reward": reward,
                        "is_last": t == length(e) - 1,
                        "language_instruction": "do it",
                    }
                    for t, (picture, action, reward) in enumerate(zip(frames(e), actions(e), rewards(e), strict=True))
                ]
                yield e, {"steps": steps, "episode_id": str(e)}

    ToyRobot(data_dir=HERE / "rlds").download_and_prepare()


def encode(pictures: np.ndarray, container: str, codec: str, file: object, **options: str) -> None:
    """Pictures (T, height, width, 3) as video at 10 frames a second."""
    import av

    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
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
                for t, picture in enumerate(frames(e)):
                    data = file.create_dataset(
                        f"env/cam0_video/frame{t}", data=np.frombuffer(jpeg(picture[..., ::-1]), np.uint8)
                    )
                    data.attrs.update(shape=picture.shape, image_format="BGR")
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
        for t, picture in enumerate(frames(e)):
            (folder / str(number) / f"{t + 1:06d}.jpg").write_bytes(jpeg(picture))
    labels = folder.parent / "labels"
    labels.mkdir(exist_ok=True)
    classes = {"Closing something": "5", "Pouring something into something": "59"}
    clips = {7: "Closing [something]", 12: "Closing [something]", 13: "Pouring [something] into [something]"}
    listed = [{"id": str(number), "label": "", "template": template} for number, template in clips.items()]
    (labels / "labels.json").write_text(json.dumps(classes))
    (labels / "train.json").write_text(json.dumps(listed[1:]))
    (labels / "validation.json").write_text(json.dumps(listed[:1]))


def lerobot() -> None:
    """As huggingface/lerobot's dataset_writer.py lays out v3.0: both episodes in one table and one MP4."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, camera, fps = HERE / "lerobot", "observation.images.top", 10
    names = {"data": "data", "episodes": "meta/episodes", "video": f"videos/{camera}"}
    for place in names.values():
        (folder / place / "chunk-000").mkdir(parents=True, exist_ok=True)
    total = length(0) + length(1)
    features = {
        camera: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [3], "names": None},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("episode_index", "frame_index", "index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "total_episodes": 2,
        "total_frames": total,
        "chunks_size": 1000,
        "splits": {"train": "0:2"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info, indent=1))
    place = [(e, t) for e in range(2) for t in range(length(e))]
    columns = {
        "action": pa.array(np.concatenate([actions(e) for e in range(2)]).tolist(), pa.list_(pa.float32(), 3)),
        "next.reward": pa.array(np.concatenate([rewards(e) for e in range(2)])),
        "episode_index": pa.array([e for e, _ in place]),
        "frame_index": pa.array([t for _, t in place]),
        "index": pa.array(list(range(total))),
        "timestamp": pa.array([t / fps for _, t in place], pa.float32()),
    }
    pq.write_table(pa.table(columns), folder / "data/chunk-000/file-000.parquet", compression="snappy")
    episodes = [
        {
            "episode_index": e,
            "tasks": ["do it"],
            "length": length(e),
            "dataset_from_index": e * length(0),
            "dataset_to_index": length(0) + e * length(1),
            "data/chunk_index": 0,
            "data/file_index": 0,
            f"videos/{camera}/chunk_index": 0,
            f"videos/{camera}/file_index": 0,
            f"videos/{camera}/from_timestamp": e * length(0) / fps,
            f"videos/{camera}/to_timestamp": (length(0) + e * length(1)) / fps,
        }
        for e in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    video = np.concatenate([frames(0), frames(1)])
    encode(video, "mp4", "libx264", str(folder / names["video"] / "chunk-000/file-000.mp4"), crf="10", g="2")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {f.__name__: f for f in (npz, bair, rlds, robonet, ssv2, lerobot)}[name]()
