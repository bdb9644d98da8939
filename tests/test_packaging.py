"""What a wheel holds and declares, and the command that it installs."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from test_architecture import OURS, imports, normal, python_files

import mbrl

PACKAGES = ("agents", "envs", "mbrl", "world_model")
# Where the name to import is not the one that pip knows.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "dm_control": "dm-control",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "OpenGL": "mujoco",  # which comes with it
}
# From any folder, and with torch alone: what the other extras bring cannot be imported.
DREAM = """
import pathlib, sys
absent = ("PIL", "cv2", "gymnasium", "hydra", "imageio", "mujoco", "omegaconf", "tensorboard", "tqdm")
sys.modules |= dict.fromkeys(absent)
import torch, world_model
model = world_model.IVideoGPT.from_pretrained("world_model/pretrained/small")
dream = model.imagine(torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 2, 4), horizon=2)
print(pathlib.Path(world_model.__file__).parents[1], tuple(dream.frames.shape))
"""


@pytest.fixture(scope="module")
def project(project_root):
    return tomllib.loads((project_root / "pyproject.toml").read_text())["project"]


def declared(project, *extras: str) -> set[str]:
    """What pip installs of the project itself with these extras."""
    names = set()
    for text in itertools.chain(
        project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)
    ):
        wanted = Requirement(text)
        names |= declared(project, *wanted.extras) if wanted.name == project["name"] else {normal(wanted.name)}
    return names


def imported(folder: str) -> set[str]:
    """What the files of a package import from outside, as pip calls it."""
    found = {
        module.split(".")[0]
        for path in python_files(folder)
        for _, module, _ in imports(path.read_text(), ".".join(path.parent.parts[-1:]))
    }
    outside = {name for name in found if name not in sys.stdlib_module_names | OURS and not name.startswith("<")}
    return {DISTRIBUTIONS.get(name, name) for name in outside}


def test_every_import_is_declared(project):
    assert imported("agents") <= declared(project)
    assert imported("world_model") <= declared(project, "video") | declared(project, "hub")
    everything = declared(project, "all")
    assert imported("mbrl") | imported("envs") <= everything
    assert {"torch", "numpy", "safetensors"} == declared(project), "the core is light"


def test_versions_are_one(project, project_root):
    assert "version" in project["dynamic"]
    assert yaml.safe_load((project_root / "CITATION.cff").read_text())["version"] == mbrl.__version__
    changes = (project_root / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(mbrl.__version__)}\b", changes, re.MULTILINE)


def test_a_wheel_holds_everything(tmp_path, project_root):
    """Code, configs, pages, weights and the mark that it has types; no tests."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    copied = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project_root,
        capture_output=True,
        text=True,
        check=True,
    )
    source = tmp_path / "source"
    for name in filter(None, copied.stdout.split("\0")):
        if not name.startswith(("runs/", "docs/", "tests/")) and (project_root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((project_root / name).read_bytes())
    subprocess.run([*build, str(source)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert not any(name.startswith(("tests", "benchmarks", "runs")) for name in held)
    wanted = {
        path.relative_to(source).as_posix()
        for folder in (*PACKAGES, "configs")
        for path in (source / folder).rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert wanted - held == set()
    assert {f"{name}/py.typed" for name in PACKAGES} <= held

    zipfile.ZipFile(wheel).extractall(site := tmp_path / "site")
    dream = subprocess.run(
        [sys.executable, "-c", DREAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert dream.returncode == 0, dream.stderr
    assert dream.stdout.split() == [str(site), "(1,", "2,", "3,", "64,", "64)"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_runs_every_verb(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ivideogpt-mbrl", "export", "--help"])
    mbrl.run()
    assert "dreams=0" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["ivideogpt-mbrl", "train", "sed=2"])
    with pytest.raises(SystemExit):
        mbrl.run()
    assert "error: unknown key sed; did you mean 'seed'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ivideogpt-mbrl"])
    mbrl.run()
    assert "python -m mbrl.train" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["ivideogpt-mbrl", "build"])
    with pytest.raises(SystemExit):
        mbrl.run()
    assert "python -m mbrl build is no command" in capsys.readouterr().err


def test_without_its_packages_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mbrl.__main__", None)
    with pytest.raises(SystemExit, match=r"error: the commands need .*: pip install 'ivideogpt-mbrl\[metaworld\]'"):
        mbrl.run()


def test_workflow_and_form(project, project_root):
    """They are YAML, and name the Pythons that make and pip know."""
    workflow = yaml.safe_load((project_root / ".github/workflows/test.yml").read_text())
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    makefile = (project_root / "Makefile").read_text()
    assert re.search(r"^PYTHON_VERSIONS := (.*)$", makefile, re.MULTILINE)[1].split() == pythons
    wanted = SpecifierSet(project["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in wanted] == pythons
    form = yaml.safe_load((project_root / ".github/ISSUE_TEMPLATE/fault.yml").read_text())
    assert any("make doctor" in field["attributes"]["label"] for field in form["body"])


def test_one_list_of_gl_packages(project_root):
    """Of make, the image, the workflow, and the line that says what to install."""
    makefile = (project_root / "Makefile").read_text()
    needed = re.search(r"^GL_PACKAGES := (.*)$", makefile, re.MULTILINE)[1]
    for file in ("Dockerfile", ".github/workflows/test.yml", "envs/rendering.py"):
        assert needed in (project_root / file).read_text(), file
