"""Where weights are: on this machine, or on the Hugging Face hub by `huggingface_hub`, which is an extra.

folder = local("world_model/pretrained/small")    # from any folder: weights that came with the package
folder = fetch("owner/name@0a1b2c")     # of this machine, or fetched and kept in the hub's own cache
address = push(folder, "owner/name")    # with the token of `hf auth login`, or of HF_TOKEN
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from world_model.schema import UserError

NAME = re.compile(r"(?P<hub>hub:)?(?P<repository>(?P<owner>[\w-][\w.-]*)/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
ROOT = Path(__file__).resolve().parent.parent  # of the project, or where the wheel was installed
MISSING = "a hub name needs pip install huggingface_hub"


def local(name: str | Path) -> Path | None:
    """The folder of this name: where the user stands, or else beside the packages, where the shipped weights lie."""
    return next((folder for folder in (Path(name), ROOT / name) if folder.is_dir()), None)


def fetch(name: str) -> Path | None:
    """The folder that a hub name means: `<owner>/<name>`, with `hub:` in front or not; `@<revision>` pins it.

    None if it is no hub name: not written as one, or, without `hub:`, a path whose first part is on this machine.

    Raises:
        UserError: the package is missing, or the hub refuses.
    """
    found = NAME.fullmatch(name)
    if found is None or (not found["hub"] and local(found["owner"])):
        return None
    pinned = {"revision": found["revision"]} if found["revision"] else {}
    return Path(_asked(name, lambda hub: hub.snapshot_download(found["repository"], **pinned)))


def model_in(folder: Path) -> Path:
    """Where in a folder the world model is: of a run, or what `make publish` made of it, in `world_model/`."""
    inside = folder / "world_model"
    return inside if inside.is_dir() and not (folder / "transformer").is_dir() else folder


def push(folder: Path, repository: str) -> str:
    """Upload a folder as the newest revision of a model `<owner>/<name>`, which is made if it isn't there.

    Returns:
        `<owner>/<name>@<revision>`, which `fetch` understands.

    Raises:
        UserError: no such name, the package is missing, or the hub refuses.
    """
    found = NAME.fullmatch(repository)
    if found is None or found["revision"]:
        raise UserError(f"{repository} is no name of a hub's repository: write <owner>/<name>")

    def upload(hub: Any) -> str:
        api = hub.HfApi()
        api.create_repo(found["repository"], exist_ok=True)
        return str(api.upload_folder(repo_id=found["repository"], folder_path=str(folder), delete_patterns="*").oid)

    return f"{found['repository']}@{_asked(repository, upload)}"


def _asked(name: str, ask: Any) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"{name}: there is no such folder, and {MISSING}")
    import huggingface_hub

    try:
        return ask(huggingface_hub)
    except Exception as error:  # noqa: BLE001, the hub's client lets through whatever its HTTP library raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: the hub refused: {reason}") from error
