"""Stored files: damaged, or of another shape, and read by whatever reads them."""

import gzip
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import synthetic
import torch
import yaml
from tiny import tiny

from fuzzing import damage
from fuzzing.case import Case, Scene, pretraining
from mbrl.compare import compare, foreign, results
from mbrl.data import data
from mbrl.experiment.run import Run, is_finished, stored_settings
from mbrl.experiment.settings import load, load_plain
from mbrl.mbpo import MBPO
from mbrl.predict.models import load_predictor
from mbrl.pretrain import pretrain, token_cache
from mbrl.pretrain.models import held_out_every
from mbrl.publish import publish
from mbrl.sweep import runs as sweep
from world_model.data import ClipDataset
from world_model.metrics.fvd import I3D
from world_model.metrics.perceptual import LPIPS

CPU = torch.device("cpu")

# -- stored files ------------------------------------------------------------------------------------------------------


def damaged(name: str, path: Path, call: Callable[[], object], generator: random.Random, each: int) -> Iterator[Case]:
    """A file, damaged in `each` ways, and what reads it."""
    ways = damage.of(path, generator)
    for way in list(ways)[:each]:
        yield Case(f"{name}, {path.name}: {way}", lambda way=way: _with_damage(path, ways[way], call))


def _with_damage(path: Path, harm: damage.Damage, call: Callable[[], object]) -> None:
    with damage.kept(path):
        harm(path)
        call()


def of_a_run(scene: Scene, generator: random.Random, each: int) -> Iterator[Case]:
    """What a run keeps, read by all but a restart."""
    run, root = scene.run, scene.run.parents[3]
    asked = load(tiny(root))
    readers: dict[str, Callable[[], object]] = {
        "compare": lambda: results.read_run(run, lambda _: None),
        "stored settings": lambda: stored_settings(asked),
        "sweep": lambda: (
            is_finished(asked),
            sweep.PlannedRun(asked, ()).frame(),
            sweep.PlannedRun(asked, ()).last_words(),
        ),
        "publish": lambda: publish.card(run, "owner/name"),
    }
    newest = max(run.glob("checkpoints/0*"))
    files = [run / name for name in ("config.yaml", "git.json", "eval.csv", "train.csv", "metrics.jsonl", "sweep.log")]
    for path in [*files, newest / "manifest.json", newest / "run.json"]:
        for name, call in readers.items():
            yield from damaged(name, path, call, generator, each)


def restarts(scene: Scene, generator: random.Random, count: int) -> Iterator[Case]:
    """Of a run and of a pre-training with a damaged file, also one of which the manifest says that it is whole."""
    run, pretrained, ways = scene.run, scene.pretraining, []
    newest, newest_of_pretraining = (max(folder.glob("checkpoints/0*")) for folder in (run, pretrained))
    for path in [*sorted(run.iterdir()), *sorted(newest.iterdir()), *sorted(run.glob("replay/*"))]:
        ways.append(("resume", path, lambda: _resume(run)))
    for path in sorted(newest.iterdir()):
        if path.name != "manifest.json":
            ways.append(("resume, told so", path, lambda path=path: _resume(run, path)))
    for path in [*sorted(pretrained.iterdir()), *sorted(newest_of_pretraining.iterdir())]:
        ways.append(("pre-training", path, lambda: _pretrain(scene)))
    for _ in range(count):
        name, path, call = generator.choice(ways)
        yield from damaged(name, path, call, generator, 1)


def _resume(run: Path, told: Path | None = None) -> None:
    """Continue a copy of the run until its first new frame; of `told` the manifest says that it is as it should be."""
    again = Path("again") / run.relative_to(run.parents[3])
    if Path("again").exists():
        damage.remove(Path("again"))
    copy(run, again)
    if told is not None and told.is_file() and not told.is_symlink():
        folder = again / "checkpoints" / told.parent.name
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["manifest.json"]
        content = told.read_bytes()
        manifest[told.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with Run.open(load(tiny(Path("again")))) as opened:
        loop = MBPO(opened)
        try:
            loop.session.begin()
            if opened.checkpoint is not None:
                loop.restore(opened.checkpoint)
        finally:
            loop.close()


def copy(old: Path, new: Path) -> None:
    """Also of pipes and links that lead nowhere; files are linked, since nothing writes into one that is there."""
    new.mkdir(parents=True)
    for path in old.iterdir():
        if path.is_dir() and not path.is_symlink():
            copy(path, new / path.name)
        elif path.is_symlink():
            (new / path.name).symlink_to(os.readlink(path))
        elif path.is_fifo():
            os.mkfifo(new / path.name)
        else:
            (new / path.name).write_bytes(path.read_bytes())


def of_models(scene: Scene, generator: random.Random, each: int) -> Iterator[Case]:
    """Weights and what lies beside them."""
    predictor = lambda folder: load_predictor(folder, None, "fp32", CPU)  # noqa: E731
    for path in sorted([*scene.model.rglob("*.json"), *scene.model.rglob("*.safetensors")]):
        yield from damaged("iVideoGPT", path, lambda: predictor(scene.model), generator, each)
    for path in sorted(scene.onestep.iterdir()):
        yield from damaged("one step", path, lambda: predictor(scene.onestep), generator, each)
    note = scene.model / "pretraining.json"
    yield from damaged("held out", note, lambda: held_out_every(scene.model, str(scene.data)), generator, each)
    for name, file in (("LPIPS", "vgg16.pth"), ("LPIPS", "lpips.pth"), ("I3D", "i3d_torchscript.pt")):
        folder = Path("judges")
        folder.mkdir(exist_ok=True)
        for other in ("vgg16.pth", "lpips.pth", "i3d_torchscript.pt"):
            if not (folder / other).exists():
                torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, folder / other)
        reader = (lambda: LPIPS.from_folder("judges")) if name == "LPIPS" else (lambda: I3D("judges", CPU))
        for case in damaged(name, folder / file, reader, generator, each):
            yield case._replace(refused=True)


def of_recordings(scene: Scene, generator: random.Random, each: int) -> Iterator[Case]:
    """Shards, and what they were made from."""
    for path in sorted(scene.data.iterdir()):
        yield from damaged("clips", path, lambda: _clips(scene.data), generator, each)
    tokenizer = torch.nn.Linear(1, 1)
    cache = scene.pretraining / "tokens.safetensors"
    yield from damaged("tokens", cache, lambda: token_cache.load(cache, tokenizer), generator, each)
    source = Path("source")
    source.mkdir(exist_ok=True)
    np.savez(source / "a.npz", image=np.zeros((4, 8, 8, 3), np.uint8), action=np.zeros((4, 2)), reward=np.zeros(4))
    np.savez(source / "b.npz", image=np.zeros((4, 8, 8, 3), np.uint8), action=np.zeros((4, 2)), reward=np.zeros(4))
    convert = ["source=npz", "path=source", "workers=1", "image_size=8"]
    yield from damaged("data", source / "a.npz", lambda: data.main([*convert, "out=converted-a"]), generator, each)
    data.main([*convert, "out=converted"])
    yield from damaged(
        "data again", Path("converted/source.json"), lambda: data.main([*convert, "out=converted"]), generator, each
    )


def _clips(folder: Path) -> None:
    clips = ClipDataset(folder)
    clips.sample(2, 3, np.random.default_rng(0))
    clips.episode(0)


def _pretrain(scene: Scene) -> None:
    settings = load_plain(
        pretrain.PretrainSettings, "pretrain", pretraining(scene, out=scene.pretraining, transformer_updates=4)
    )
    with pretrain.Pretraining(settings):
        pass


PUBLISHED = {
    "published/scores.json.gz": '[{"task": "dmc_walker_walk", "method": "x", "seed": 0, "xs": [1, 2], "ys": [0, 500]}]',
    "published/dmc_walker_walk/x/0/scores.jsonl": '{"step": 1, "episode/score": 5}\n{"step": 2, "episode/score": 9}\n',
    "published/tdmpc2/walker-walk.csv": "step,reward,seed\n1000,100.0,0\n2000,900.0,0\n",
    "published/dmc_walker_walk.csv": ",agent,task,seed,frame,episode_reward,hour\n0,D,walker_walk,0,1000,100.0,0.5\n",
}


def of_others(generator: random.Random, each: int) -> Iterator[Case]:
    """Results of other projects."""

    for name, text in PUBLISHED.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        reader = lambda path=path: foreign.read_file(path, frozenset(), lambda _: None)  # noqa: E731
        yield from damaged("published", path, reader, generator, each)
        if name.endswith(".gz"):
            for way in ("null", "deep", "another value", "a key less", "a long number"):
                yield Case(
                    f"published, {way}",
                    lambda way=way, path=path, reader=reader: _with_damage(path, _zipped(way, generator), reader),
                )


def _zipped(way: str, generator: random.Random) -> damage.Damage:
    def harm(path: Path) -> None:
        plain = path.with_suffix(".plain")
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        damage.jsons(generator)[way](plain)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return harm


NAMES = (
    r"""\q $x^$ $\frac a|b <script>x</script> {{7*7}} {%x%} a&b a_b^c ~#% `x` [x](y) =1+1 é漢🙂 ../../x \input{x}
    %s%n -x _x '" """.split()
    + ["x" * 500, "\x1b[2J", "a\nb", "", "a b"]
)


def names(generator: random.Random, count: int) -> Iterator[Case]:
    """In reports: of tasks, agents and variants in stored configs."""
    for name in generator.sample(NAMES, min(count, len(NAMES))):
        for key in ("variant", "agent", "task"):
            yield Case(f"report {key}={name!r}", lambda key=key, name=name: _report(key, name))


def _report(key: str, name: str) -> None:
    root = Path("named")
    if root.exists():
        damage.remove(root)
    folder = synthetic.run(root, "hammer", "mbpo", 1, [0.1, 0.2])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {key: name}))
    compare.main([f"runs=[{root}]", "out=named-reports", "reps=100", "export=dreamerv3"])
    [report] = Path("named-reports").iterdir()
    markdown = [len(re.findall(r"(?<!\\)\|", line)) for line in (report / "table.md").read_text().splitlines()]
    assert set(markdown) == {12}, "a table of 11 columns"
    body = (report / "table.tex").read_text().split("\\midrule\n")[1].split(" \\\\\n\\bottomrule")[0]
    assert len(re.findall(r"(?<!\\)&", body)) == 10
    assert not re.search(r"(?<!\\)[$%#_^~]|\\(?![$%#_&{}\\]|text)", body), body
    damage.remove(report.parent)
