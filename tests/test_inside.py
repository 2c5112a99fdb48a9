"""The page on how the library works: it lists every file, and imports go only in the directions of its list and
drawing.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pages
import pytest

import ngi_gevent
from ngi_gevent.core.lifecycle import KEEP, STATES, TRANSITIONS
from ngi_gevent.sockets import dispatcher

PACKAGE = Path(ngi_gevent.__file__).parent
PAGE = (pages.DOCS / "inside.md").read_text()
DRAWINGS = pages.DOCS / "drawings"


def name_of(file: Path) -> str:
    """Return the name of *file* on the page: its module within the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "ngi_gevent"


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


@functools.cache
def parsed(name: str) -> ast.Module:
    """Return the code of the module *name*."""
    return ast.parse(MODULES[name].read_text())


def statements(node: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """Yield all statements in *node* and its functions.  Those for type checkers are included only if *typing* is
    true.
    """
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from statements(child, typing=typing)


def imported(tree: ast.Module, *, typing: bool = False) -> set[str]:
    """Return the modules of the package that *tree* imports, with those for type checkers if *typing* is true."""
    found = set()
    for node in statements(tree, typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here are absolute"
            # A name imported from a package can be a module or a member of it.
            found |= {
                name if name.removeprefix("ngi_gevent.") in MODULES else str(node.module)
                for name in (f"{node.module}.{alias.name}" for alias in node.names)
            }
    return {name.removeprefix("ngi_gevent.") for name in found if re.match(r"ngi_gevent(\.|$)", name)}


def imports() -> list[tuple[str, str]]:
    """Return each pair of a module and a module that it imports."""
    return [(name, other) for name in MODULES for other in imported(parsed(name)) - {name}]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules in *graph* that import themselves through others."""

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        todo = [name]
        while todo:
            new = graph.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    return sorted(name for name in graph if name in reached(name))


def listed() -> list[str]:
    section = re.search(r"^### The files\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    assert section
    return re.findall(r"^\| `([\w.]+)` \|", section[1], re.MULTILINE)


def drawn() -> dict[str, float]:
    """Return the height at which each module is drawn."""
    texts = ElementTree.parse(DRAWINGS / "files.svg").iter("{http://www.w3.org/2000/svg}text")
    found = {}
    for text in texts:
        if text.get("class") == "module":
            module = text.attrib["data-module"]
            assert text.text == module.rpartition(".")[2], "the folder is the room that it is drawn in"
            assert module not in found
            found[module] = float(text.attrib["y"])
    return found


def rows(heights: dict[str, float]) -> dict[str, int]:
    """Return each module's row, counted from the top.  Boxes at most two lines apart are in the same row."""
    result: dict[str, int] = {}
    row, before = -1, float("-inf")
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        if height - before > 40:
            row += 1
        before = height
        result[name] = row
    return result


def test_every_file_is_listed_once():
    assert sorted(listed()) == sorted(MODULES)


def test_imports_go_down_the_list():
    place = {name: index for index, name in enumerate(listed())}
    assert [f"{name} imports {other}" for name, other in imports() if place[name] > place[other]] == []


def test_imports_for_type_checkers_go_one_way_too():
    graph = {name: imported(parsed(name), typing=True) - {name} for name in MODULES}
    assert circles(graph) == []


def test_a_circular_import_is_detected():
    graph = {"top": {"one"}, "one": {"two"}, "two": {"three", "bottom"}, "three": {"one"}, "bottom": set()}
    assert circles(graph) == ["one", "three", "two"]


def test_every_file_is_drawn():
    """The modules of ``testing`` are not drawn singly.  Folders are drawn as rooms."""
    folders = {"core", "sockets"}
    assert sorted(drawn()) == sorted(name for name in MODULES if not name.startswith("testing") and name not in folders)


def test_imports_go_down_the_drawing():
    row = rows(drawn())
    assert len(set(row.values())) == 8
    pairs = [pair for pair in imports() if row.keys() >= set(pair)]
    assert len(pairs) > 100
    assert [f"{name} imports {other}" for name, other in pairs if row[name] > row[other]] == []


def test_the_table_of_events_matches_the_lifecycle():
    header, *entries = re.findall(r"^\| (`[A-Za-z_ ]+`|event) \| (.*\|.*\|.*) \|$", PAGE, re.MULTILINE)
    assert header == ("event", " | ".join(STATES).upper().replace("-", "_"))
    shown = {}
    for event, cells in entries:
        for state, cell in zip(STATES, cells.split("|"), strict=True):
            if cell.strip():
                following, _, debt = cell.strip().partition(", ")
                shown[state, event.strip("`")] = following.lower().replace("_", "-"), debt or KEEP
    assert shown == TRANSITIONS


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ngi_gevent", {"ngi_gevent"}),
        ("from ngi_gevent import blocking, connect", {"blocking", "ngi_gevent"}),
        ("from ngi_gevent.testing.faults.plan import Plan", {"testing.faults.plan"}),
        ("def later():\n    from ngi_gevent.sockets import tls", {"sockets.tls"}),
        ("if TYPE_CHECKING:\n    from ngi_gevent.sockets.stream import StreamConnection", set()),
        ("import gevent, os", set()),
    ],
)
def test_imports_of_modules_and_members_are_found(code, expected):
    assert imported(ast.parse(code)) == expected


def test_imports_for_type_checkers_are_found():
    code = "if TYPE_CHECKING:\n    from ngi_gevent.sockets.stream import StreamConnection"
    assert imported(ast.parse(code), typing=True) == {"sockets.stream"}


@pytest.mark.parametrize("drawing", sorted(DRAWINGS.glob("*.svg")), ids=lambda drawing: drawing.name)
def test_drawings_are_on_a_page_and_readable_in_dark_mode(drawing):
    assert any(f":file: drawings/{drawing.name}" in page.read_text() for page in pages.DOCS.glob("*.md"))
    style = drawing.read_text()
    assert ElementTree.fromstring(style).get("aria-label")
    colours = re.findall(r"(?:fill|stroke): ([^;]+);", style)
    assert colours
    assert [colour for colour in colours if not colour.startswith("var(--color-") and colour != "none"] == []


def test_the_drawing_of_a_bytes_life_has_the_size_of_a_batch():
    drawing = (DRAWINGS / "life_of_a_byte.svg").read_text()
    assert f"batch: up to {dispatcher.BATCH_SIZE} connections" in drawing


def own_attributes(node: ast.ClassDef) -> set[str]:
    """Return the attributes that the methods of a class assign to ``self``."""
    assigned = [child for child in ast.walk(node) if isinstance(child, ast.Assign | ast.AnnAssign | ast.AugAssign)]
    targets = [target for child in assigned for target in getattr(child, "targets", None) or [child.target]]
    parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {part.attr for part in parts if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self"}


def test_own_attributes_are_counted():
    code = (
        "class C:\n def m(self):\n  self.a = self.b, c.d = 1\n  self.e: int = 2\n  self.f += 3\n  self.g[0] = x.h = 4\n"
    )
    assert own_attributes(ast.parse(code).body[0]) == {"a", "b", "e", "f"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("core.", "sockets.", "blocking."))])
def test_files_and_classes_are_small(name):
    """Each module is one noun, and each class has little state."""
    code = MODULES[name].read_text()
    assert code.count("\n") <= (350 if name.startswith("sockets.") else 400)
    classes = [node for node in statements(parsed(name), typing=True) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if len(own_attributes(node)) > 12] == []
