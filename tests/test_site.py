"""The pages that are made of the code, and the site that is made of the pages."""

import importlib.util
import re
from pathlib import Path

import pytest


def module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_page_of_keys_is_fresh(project_root):
    made = module(project_root / "docs" / "generate.py").keys()
    assert made == (project_root / "docs" / "keys.md").read_text(), "run make docs"


def test_the_site_is_built_and_asks_no_other_host(project_root, tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(project_root / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = {page.stem for page in tmp_path.glob("*.html")}
    assert pages >= {page.stem for page in (project_root / "docs").glob("*.md")}
    for page in tmp_path.glob("*.html"):
        asked = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:)?//([^/\"]+)", page.read_text())
        assert asked == [], page
    index = (tmp_path / "index.html").read_text()
    assert "../README.md" not in index
