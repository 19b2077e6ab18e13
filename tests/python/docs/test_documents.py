"""The documents name only what exists: their links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "cpp/*.md", "examples/*.md", "bench/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def local_links(path: Path) -> Iterator[tuple[str, Path, str]]:
    """Text, file and anchor of each link of a document that isn't a link into the network."""
    for match in LINK.finditer(prose(path)):
        if "://" in match["target"]:
            continue
        name, _, anchor = match["target"].partition("#")
        yield match["text"], (path.parent / name).resolve() if name else path, anchor


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    missing = [
        f"{text}: {target.relative_to(ROOT)}#{anchor}"
        for text, target, anchor in local_links(path)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert missing == []
