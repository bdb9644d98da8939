"""A hook of mkdocs: links that leave docs/ lead nowhere in the site, so their text alone stays, as a file's name."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)\s]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(r"`\2`", markdown)
