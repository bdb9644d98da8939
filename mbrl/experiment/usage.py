"""What `python -m mbrl.<verb> --help` prints: the verb's docstring, then its keys.

Each key comes with the value that it would have under the overrides beside `--help`, the comment that it has in its
YAML file (or, if it is a learner's, in config.yaml), and the file that the value comes from. All of it is read from the
code and from `configs/`.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mbrl.experiment.settings import CONFIG_DIR, HELP, HelpAsked

COMMENT_COLUMN = 48
VERB = re.compile(r"^if __name__ == .__main__.:$", re.MULTILINE)


class Entry(NamedTuple):
    """A key as it stands in a file."""

    value: str  # as written there
    comment: str


def page(module: Path, overrides: Sequence[str], help_asked: HelpAsked) -> str:
    """The help of the verb in the file `module`, which was given `overrides`."""
    parts = [(ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").strip()]
    own, values = f"{module.stem}.yaml", dict(help_asked.values)
    if own not in help_asked.files and (CONFIG_DIR / own).is_file():  # beside those of a run or of a pre-training
        parts.append(section([own], [override for override in overrides if override not in HELP]))
        for key, _ in entries(CONFIG_DIR / own):
            values.pop(key, None)
    parts.append(section(help_asked.files, help_asked.overrides, values))
    return "\n\n".join(parts)


def section(files: Sequence[str], overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> str:
    """The keys of the first of `files`, in its order; `values` are what they come to, by default as written."""
    layers = {name: dict(entries(CONFIG_DIR / name)) for name in files}
    typed = dict(override.split("=", 1) for override in overrides)
    base = {key: entry for name in reversed(files) for key, entry in layers[name].items()}
    base = {key: base[key] for name in files for key in layers[name]}  # the keys of a planner stand in its file alone
    of_runs = dict(entries(CONFIG_DIR / "config.yaml"))
    lines = [f"configs/{files[0]}; values that come from elsewhere say where:"]
    for key, entry in base.items():
        if values is not None and key not in values:
            continue
        holders = [name for name in files if key in layers[name]]
        source = "typed" if key in typed else holders[-1]
        value = shown(values[key]) if values is not None else typed.get(key, entry.value)
        explained = [*(layers[name][key] for name in holders), of_runs.get(f"world_model.{key}", entry)]
        comment = next((other.comment for other in explained if other.comment), "")
        where = "" if source == files[0] else f"[{source}]"
        note = "  ".join(part for part in (where, comment) if part)
        line = f"  {key}={value}"
        lines.append(f"{line:<{COMMENT_COLUMN}}  {note}".rstrip())
    return "\n".join(lines)


def shown(value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else str(value)


def entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """The dotted keys of a YAML file, with what stands beside each; Hydra's list of files is none of them."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    if root is not None:
        yield from ((key, entry) for key, entry in _walk(root, text.splitlines(), "") if key != "defaults")


def _walk(node: yaml.Node, lines: Sequence[str], prefix: str) -> Iterator[tuple[str, Entry]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _walk(value, lines, f"{name}.")
        else:
            start, end = value.start_mark, value.end_mark
            written = lines[start.line][start.column : end.column if end.line == start.line else None]
            yield name, Entry(written, _comment(lines, key.start_mark.line))


def _comment(lines: Sequence[str], line: int) -> str:
    """What follows `#` there, and in the lines below of which nothing else is in the same column."""
    match = re.search(r"\s# ?(.*)$", lines[line])
    if match is None:
        return ""
    column, parts = match.start() + 1, [match[1]]
    for below in lines[line + 1 :]:
        if below[:column].strip() or not below[column:].startswith("#"):
            break
        parts.append(below[column + 1 :].strip())
    return " ".join(parts)


def _verb(file: Path) -> str:
    return file.parent.name if file.stem == "__main__" else file.stem


def verbs(package: Path) -> Iterator[tuple[str, str]]:
    """(name, first line of the docstring) of every command of a package, a file or a folder; none is imported."""
    for file in sorted([*package.glob("[a-z]*.py"), *package.glob("*/__main__.py")], key=lambda path: _verb(path)):
        text = file.read_text(encoding="utf-8")
        if VERB.search(text):
            yield _verb(file), (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
