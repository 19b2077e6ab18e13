"""The documents name only what exists: their links lead somewhere, and the symbols of the
architecture page are defined in the files that it links them to.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "cpp/*.md", "examples/*.md", "bench/*.md")
    for path in ROOT.glob(pattern)
)
HISTORY = ROOT / "bench" / "HISTORY.md"
RESULTS = ROOT / "bench" / "RESULTS.md"
NUMBER = re.compile(r"\d[\d,.]*\d|\d")
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
SOURCES = (".py", ".pyi", ".h", ".cuh", ".cpp", ".cu")


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


def anchor_of(heading: str) -> str:
    """What GitHub calls a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)}


@cache
def python_names(path: Path) -> frozenset[str]:
    """What a module defines: `name`, and `Class.name` for methods and fields."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            names.update(prefix + one.id for one in targets if isinstance(one, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return frozenset(names)


def cpp_defines(path: Path, name: str) -> bool:
    """Whether a C++ file declares a type, function, member or macro of that name."""
    text = re.sub(r"//.*", "", path.read_text())
    *scope, last = name.split("::")
    if scope and not re.search(rf"\b(class|struct|enum|namespace)\s[^;{{]*\b{scope[-1]}\b", text):
        return f"{scope[-1]}::{last}(" in text
    declared = rf"\b(class|struct|enum|enum class|using)\s+{last}\b|#define {last}\b"
    # A type, an & or a * stands before what is declared; before what is called, nothing of that.
    member = rf"[\w>&*\]]\s+[&*]*(\w+::)*{last}\s*(\(|=|;|\{{|\[)"
    enumerator = rf"[{{,]\s*{last}\s*[,}}=]"
    return any(re.search(pattern, text) for pattern in (declared, member, enumerator))


def defined(path: Path, symbol: str) -> bool:
    name = symbol.removesuffix("()")
    if path.suffix in (".py", ".pyi"):
        return name in python_names(path)
    return cpp_defines(path, name.replace(".", "::"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    missing = [
        f"{text}: {target.relative_to(ROOT)}#{anchor}"
        for text, target, anchor in local_links(path)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert missing == []


def test_a_present_figure_is_one_that_was_measured() -> None:
    parts = re.split(r"^## (.*)$", HISTORY.read_text(), flags=re.MULTILINE)
    measured = {
        anchor_of(heading): set(NUMBER.findall(text))
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    rows = [line for line in RESULTS.read_text().splitlines() if "](HISTORY.md#" in line]
    rows = [line for line in rows if line.startswith("|")]
    assert len(rows) > 100
    for row in rows:
        sections = [match["target"].partition("#")[2] for match in LINK.finditer(row)]
        known = set().union(*(measured[section] for section in sections))
        what, figure, beside = LINK.sub("", row).split("|")[1:4]
        assert set(NUMBER.findall(figure + beside)) <= known, what


def test_linked_symbols_are_defined_in_their_files() -> None:
    symbols = [
        (text.strip("`"), target)
        for text, target, _ in local_links(ARCHITECTURE)
        if text.startswith("`") and target.suffix in SOURCES and "/" not in text
    ]
    assert len(symbols) > 50
    missing = [
        f"{symbol} in {target.relative_to(ROOT)}"
        for symbol, target in symbols
        if symbol != target.name and not defined(target, symbol)
    ]
    assert missing == []


def test_every_other_name_is_a_path_a_flag_or_a_word_of_the_code() -> None:
    without_links = LINK.sub("", prose(ARCHITECTURE))
    names = set(re.findall(r"`([^`]+)`", without_links))
    words = set(re.findall(r"[\w-]+", "\n".join(read_sources())))
    missing = [name for name in sorted(names) if not known(name, words)]
    assert missing == []


def read_sources() -> Iterator[str]:
    for folder in ("python", "cpp", "tests", "bench"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SOURCES or path.name == "CMakeLists.txt":
                yield path.read_text()


def known(name: str, words: set[str]) -> bool:
    places = (ROOT, ROOT / "python" / "minisgl", ROOT / "cpp", ROOT / "tests")
    if "/" in name and not name.startswith(("/", "POST /", "GET /")):
        return any(list(place.glob(name)) for place in places)
    return all(word in words for word in re.findall(r"[\w-]+", name) if not word.isdigit())


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("class Engine:\n    size: int = 1\n\n    def submit(self) -> None: ...\n")
    assert all(defined(module, name) for name in ("Engine", "Engine.submit()", "Engine.size"))
    assert not any(defined(module, name) for name in ("submit", "Engine.abort", "engine"))
    header = tmp_path / "header.h"
    header.write_text(
        "class Engine {\n  std::vector<int> take(int n);\n  int size_ = 1;\n};\n"
        "enum class Kind { draw, skip };\nvoid run(Engine& e) { e.stop(); return finish(); }\n"
    )
    names = ("Engine", "Engine::take", "take()", "Engine::size_", "Kind", "run", "Kind::skip")
    assert all(defined(header, name) for name in names), names
    assert not any(defined(header, name) for name in ("stop", "Engine::stop", "Other::take"))
    assert not known("kernels/nowhere", set())
    assert known("--tp", {"--tp"})
    assert not known("nowhere_at_all", {"somewhere"})
