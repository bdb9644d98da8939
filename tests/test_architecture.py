"""The rules of the house, checked on the source: imports, file sizes, data-only configs, lock, Makefile.

`envs`, `agents` and `world_model` are leaves: none imports another and none knows hydra or a logger. `mbrl`
is the trunk, the only package that sees all of them, and `benchmarks` stands beside it and measures it. Imports
inside functions, or by name with importlib, count like any other.
"""

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400


class Rule(NamedTuple):
    """What a package may import besides itself and the standard library (module names, as prefixes)."""

    allowed: frozenset[str]
    lazy: frozenset[str] = frozenset()  # of these, the ones that only a function may import
    denied: frozenset[str] = frozenset()  # parts of an allowed library that stay closed


OURS = frozenset({"envs", "agents", "world_model", "mbrl", "benchmarks"})
LOGGER = frozenset({"torch.utils.tensorboard"})
RULES = {
    "envs": Rule(
        frozenset({"numpy", "gymnasium", "mujoco", "metaworld", "dm_control", "ogbench", "PIL"}),
        lazy=frozenset({"dm_control", "ogbench", "PIL"}),
    ),
    "agents": Rule(frozenset({"torch", "numpy"}), denied=LOGGER),
    "world_model": Rule(
        frozenset({"torch", "numpy", "safetensors", "huggingface_hub"}),
        lazy=frozenset({"huggingface_hub"}),
        denied=LOGGER,
    ),
    "world_model/data": Rule(
        frozenset({"torch", "numpy", "safetensors", "PIL", "av", "h5py", "pyarrow"}), denied=LOGGER
    ),
    "mbrl": Rule(frozenset({"*"}), denied=frozenset({"tests", "conftest", "pytest", "benchmarks"})),
    "benchmarks": Rule(frozenset({"*"}), denied=frozenset({"tests", "conftest", "pytest"})),
}


def covered(module: str, names: frozenset[str]) -> bool:
    """Whether `module` is one of `names` or lies inside one."""
    return "*" in names or any(module == name or module.startswith(f"{name}.") for name in names)


def spelled(expression: ast.expr | None, tree: ast.Module) -> list[str]:
    """The module names that an expression can stand for, as far as the source spells them out."""
    match expression:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]) if "." in start.lstrip("."):
            return [start.rstrip(".")]  # f"mujoco.{backend}": whatever follows lies inside mujoco
        case ast.IfExp(body=body, orelse=orelse):
            return spelled(body, tree) + spelled(orelse, tree)
        case ast.Name(id=variable):
            values = [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                and any(isinstance(target, ast.Name) and target.id == variable for target in node.targets)
            ]
            return [name for value in values for name in spelled(value, tree)] or ["<computed name>"]
    return ["<computed name>"]


def imports(source: str, package: str) -> Iterator[tuple[int, str, bool]]:
    """Every import of `source`, a file of the dotted `package`: (line, module, at the top level?)."""
    tree = ast.parse(source)
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            # `from torch.utils import tensorboard` names the module only together with what it imports
            modules = [".".join(filter(None, [base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            names = spelled(node.args[0] if node.args else None, tree)
            modules = [package + name if name.startswith(".") else name for name in names]
        for module in modules:
            yield node.lineno, module, id(node) not in in_functions


def violations(source: str, folder: str) -> list[str]:
    """What in `source`, a file of `folder` ("agents", "world_model/data", ...), breaks the import table."""
    top = folder.split("/")[0]
    rule = RULES.get(folder, RULES[top])
    found = []
    for line, module, at_top_level in imports(source, folder.replace("/", ".")):
        library = module.split(".")[0]
        if library == top or (library in sys.stdlib_module_names and library not in OURS):
            continue
        if not covered(module, rule.allowed) or covered(module, rule.denied):
            found.append(f"line {line}: {folder} must not import {module}")
        elif at_top_level and covered(module, rule.lazy):
            found.append(f"line {line}: {folder} may import {library} only inside a function")
    return found


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def project_files() -> list[Path]:
    """The text files that belong to the project: not environments, caches, build outputs or runs."""
    skipped = {".git", ".venv", "build", "dist", "runs", "__pycache__"}
    texts = {".py", ".toml", ".yaml", ".yml", ".md", ".cff", ".lock", ".sh", ".json"}
    found = []
    for top in sorted(ROOT.iterdir()):
        if top.name in skipped or top.name.endswith((".egg-info", "_cache")):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            named = path.suffix in texts or path.name == "Makefile" or path.parent.name == ".ci"
            if path.is_file() and named and not skipped.intersection(path.relative_to(ROOT).parts):
                found.append(path)
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", python_files(*sorted(OURS)), ids=relative)
def test_imports_follow_the_table(path):
    assert violations(path.read_text(encoding="utf-8"), relative(path.parent)) == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("envs", "import torch"),
        ("envs", "def f():\n    import torch"),
        ("envs", "from dm_control import suite"),
        ("envs", "import hydra.utils"),
        ("agents", "from world_model import IVideoGPT"),
        ("agents", "from ..envs import make"),
        ("agents", "from torch.utils.tensorboard import SummaryWriter"),
        ("agents", "from torch.utils import tensorboard"),
        ("agents", "import importlib\nimportlib.import_module('gymnasium')"),
        ("agents", "__import__('omegaconf')"),
        ("agents", "from importlib import import_module\nimport_module('mb' + 'rl')"),
        ("agents", "import importlib\nname = f'hydra.{x}'\nimportlib.import_module(name)"),
        ("world_model", "import mbrl.replay as replay"),
        ("world_model", "import tensorboard"),
        ("world_model", "import av"),
        ("world_model/data", "from ...agents import api"),
        ("mbrl", "from tests import conftest"),
        ("mbrl", "from benchmarks import measure"),
        ("benchmarks", "import tests.tiny"),
    ],
)
def test_forbidden_imports_are_seen(folder, source):
    assert len(violations(source, folder)) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("envs", "def f():\n    from dm_control import suite"),
        ("envs", "from .wrappers import FrameStack"),
        ("envs", "import importlib\nname = 'mujoco' if x else f'mujoco.{x}'\nimportlib.import_module(name)"),
        ("agents", "import math, torch\nfrom torch import nn\nfrom collections.abc import Callable"),
        (
            "world_model",
            "from safetensors.torch import load_file\nfrom world_model.layout import TokenLayout",
        ),
        ("world_model/data", "import av\nfrom ..layout import TokenLayout"),
        ("mbrl", "import hydra, envs, agents.drqv2\nfrom torch.utils.tensorboard import SummaryWriter"),
    ],
)
def test_allowed_imports_pass(folder, source):
    assert violations(source, folder) == []


def test_every_package_is_there():
    empty = [package for package in sorted(OURS) if not (ROOT / package / "__init__.py").is_file()]
    assert empty == []


def test_no_file_is_too_long():
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in project_files()
        if path.suffix in (".py", ".yaml", ".toml", ".sh") or path.name == "Makefile"
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_drawer_for_everything():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [relative(path) for path in python_files(*OURS, "tests") if drawers & {path.stem, path.parent.name}] == []


def keys(data: object) -> set[str]:
    """All keys of nested mappings and lists."""
    if isinstance(data, dict):
        return set(data).union(*(keys(value) for value in data.values()))
    return set().union(*map(keys, data)) if isinstance(data, list) else set()


def test_configs_are_data_only():
    files = [path for path in sorted((ROOT / "configs").rglob("*")) if path.is_file()]
    assert files
    for path in files:
        assert path.suffix == ".yaml", f"{relative(path)} is not data"
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # refuses Python tags
        assert data is None or isinstance(data, dict), relative(path)
        assert "_target_" not in keys(data), f"{relative(path)} names code to run"


MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:root|home|Users|work|opt|tmp|mnt|media|scratch)/\w")


def test_no_path_of_some_machine():
    assert MACHINE_PATH.search("folder = '" + "/home" + "/me/data'")
    assert not MACHINE_PATH.search("see https://example.org/home/page and runs/tmp/x and /path/to/weights")
    found = [
        f"{relative(path)}:{number}: {line.strip()[:80]}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def locked() -> dict[str, Requirement]:
    lines = (line.split(" #")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(requirement.name): requirement for requirement in requirements}


UNLOCKED = {"wandb", "hub", "browser", "robodesk"}  # extras that most users do not need, and tests skip without


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_pins_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    makefile = (ROOT / "Makefile").read_text()
    torch_pin = re.search(r"^TORCH := (torch==\S+)$", makefile, re.MULTILINE)
    assert torch_pin is not None
    pins = locked() | {"torch": Requirement(torch_pin[1])}
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in UNLOCKED}
    for text in [*project["dependencies"], *itertools.chain(*extras.values())]:
        wanted = Requirement(text)
        if wanted.name == project["name"]:
            continue
        pin = next(iter(pins[normal(wanted.name)].specifier))
        assert pin.operator == "=="
        assert pin.version in wanted.specifier, f"{text}, but locked at {pin.version}"


def test_lock_fits_every_machine():
    """No build of torch and nothing that belongs to one, no file or folder in place of a version."""
    for name, requirement in locked().items():
        assert not name.startswith(("torch", "nvidia", "triton", "cuda")), name
        assert requirement.url is None, name


def test_make_help_lists_the_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    phony = {target for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for target in line.split()}
    shown = set(re.findall(r'^\t@echo "make (\w+) ', makefile, re.MULTILINE))
    assert shown | {"help"} == phony
    for package, verb in re.findall(r"-m (mbrl|benchmarks)\.(\w+)", makefile):
        files = (ROOT / package / f"{verb}.py", ROOT / package / verb / "__main__.py")
        assert any(file.is_file() for file in files), f"the Makefile calls {package}.{verb}"
