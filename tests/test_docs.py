"""The documentation: its code runs as a reader would run it."""

from __future__ import annotations

import importlib
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pages
import pytest

from ngi_gevent import adapters, testing

ROOT = Path(__file__).parent.parent

#: The code of pages.
PAGES = [page for page in sorted(pages.DOCS.rglob("*.md")) if "_build" not in page.parts]


def named(page):
    return str(page.relative_to(pages.DOCS))


def blocks(name):
    return [block.text for block in pages.blocks(pages.DOCS / name) if block.language == "python"]


def needs(page, *programs):
    text = page.read_text()
    for program in programs:
        if re.search(rf"\b{program}\b", text) and not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    if re.search(r"^\$ gunicorn\b", text, re.MULTILINE):
        pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    if re.search(r"^from twisted\b", text, re.MULTILINE):
        pytest.importorskip("twisted", reason="twisted is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if pages.module(page)], ids=named)
def test_page_module_runs(page, run):
    needs(page)
    code = pages.module(page)
    tests = len(re.findall(r"^def test_", code, re.MULTILINE))
    result = run(test_page=code if tests else f"{code}\n\ndef test_it_is_imported():\n    pass\n")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= (tests or 1)  # a test that runs on each implementation counts several times


@pytest.mark.timeout(180)  # a page can take a reader a quarter of an hour to type
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language == "console" for block in pages.blocks(page))], ids=named
)
def test_the_commands_of_a_page_print_what_it_shows(page, tmp_path, monkeypatch):
    needs(page, "nc", "openssl", "pgrep", "systemd-socket-activate", "haproxy")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # This simulates an environment in which only pytest and this package are installed.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_ngi_gevent")
    if page.name == "tutorial.md":  # readers follow this page in a checkout
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with pages.Reader(tmp_path) as reader:
        reader.follow(page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=lambda page: page.name)
def test_the_ports_of_a_page_are_all_replaced(page):
    code = [block.text for block in pages.blocks(page) if block.language == "console" or "caption" in block.options]
    assert pages.strange_ports("\n".join(code)) == []


SUMS = [
    block.text
    for block in pages.blocks(pages.DOCS / "tutorial.md")
    if block.options.get("caption") == "server.py" and "adapters.Lines" in block.text
]


@pytest.mark.parametrize("line", [b"one", b"\xff", b"9" * 900 + b" -", b"9" * 4300 + b" 1", b"9" * 5000])
def test_no_line_makes_the_tutorials_server_raise(line):
    """The lines include some for which ``converse`` would raise: invalid numbers, and numbers or lines that are too
    long.
    """
    assert len(SUMS) >= 4
    for server in SUMS:
        names = {"__name__": "server"}
        exec(server, names)
        too_long = "max_line=1000" in server and len(line) > 1000
        answer = testing.converse(names["Sums"], [line + b"\n1 2\n"])
        assert answer.data == (b"" if too_long else b"error: numbers only\n3\n")


def test_installing_lists_each_extra_and_each_version():
    page = (pages.DOCS / "how_to" / "installing.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(re.findall(r"^(\w+) = ", extras, re.MULTILINE))
    supported = page.partition("\n## Python\n")[2].partition("are supported")[0]
    classifiers = re.findall(r"Python :: (\d\.\d+)", project)
    assert re.findall(r"\d\.\d+", supported) == classifiers
    assert re.search(r"gevent must be ([\d.]+\d) or later", page)[1] == re.search(r"gevent>=([\d.]+)", project)[1]


def ratio(cell: str) -> float:
    """Return the number of a cell, which is bold if the other server is ahead."""
    return float(cell.strip(" *"))


def test_performance_agrees_with_the_results():
    text = (ROOT / "benchmarks" / "results" / "results.md").read_text().partition("## Targets")[0]
    ratios = {
        work: dict(zip(("StreamServer", "asyncio", "uvloop", "Twisted"), map(ratio, columns), strict=True))
        for work, *columns in re.findall(
            r"^\| (.*?) \| [^|]* \| [\d,.]+ \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", text, re.MULTILINE
        )
    }
    page = (pages.DOCS / "how_to" / "performance.md").read_text().partition("| faster than | slower than |")[2]
    rows = re.findall(r"^\| (\w.*?) \| (.*?)\| (.*?)\|$", page, re.MULTILINE)
    assert len(rows) > 10
    for work, faster, slower in rows:
        more = {name for name, ratio in ratios[work].items() if ratio > 1.1}
        less = {name for name, ratio in ratios[work].items() if ratio < 0.9}
        if "less is better" in work:
            more, less = less, more
        assert (work, set(re.findall(r"\w+", faster)), set(re.findall(r"\w+", slower))) == (work, more, less)


def test_the_drawing_of_calls_shows_the_calls_of_a_conversation():
    """The drawing shows a client that connects, sends and closes, and each call between library and server."""
    drawing = ElementTree.parse(pages.DOCS / "drawings" / "calls.svg")
    drawn = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "call"]
    calls = []

    class Connection(adapters.Base):
        def set_handler(self, handler):
            calls.append("connection.set_handler(self)")
            super().set_handler(handler)

        def write(self, data):
            calls.append("connection.write(data)")
            super().write(data)

    class Echo:
        def __init__(self, connection):
            calls.append("Echo(connection)")
            connection.set_handler(self)

        def handle_input(self, connection, data):
            calls.append("handle_input(connection, data)")
            connection.write(data.upper())

        def handle_close(self, connection, reason):
            calls.append("handle_close(connection, reason)")

    testing.converse(lambda connection: Echo(Connection(connection)), [b"hello"])
    assert drawn == calls


def test_the_drawing_of_the_race_equals_its_replay(monkeypatch):
    """If this fails because the simulation has changed, check the replay on the page, and run the script."""
    for name in "office", "others", "test_office":
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # the script takes their code from the page
    drawings = pages.DOCS / "drawings"
    assert runpy.run_path(str(drawings / "race.py"))["draw"]() == (drawings / "race.svg").read_text()


#: Code that is run; commands that take long or need another machine; code of zc.ngi; and blocks that are not code.
LANGUAGES = {"python", "console", "sh", "python2", "text"}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_block_has_a_known_language(page):
    kinds = {block.language for block in pages.blocks(page) if "caption" not in block.options}
    assert {kind for kind in kinds if not kind.startswith("{")} <= LANGUAGES


@pytest.fixture
def run(pytester, monkeypatch):
    """A function that runs pytest on files, in a separate process."""

    def run(**files):
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess("-q", "-p", "pytest_ngi_gevent", "-p", "no:cacheprovider", "-W", "error")

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return run


@pytest.mark.slow
def test_the_first_test_can_be_copied(run):
    run(test_greeter="\n".join(blocks("testing.md")[:2])).assert_outcomes(passed=1)


def test_the_files_that_pages_name_exist():
    names = {
        (named(page), name)
        for page in sorted(pages.DOCS.rglob("*.md"))
        for name in re.findall(r"`((?:examples|tests|docs)/[\w./]+\w)`", page.read_text())
    }
    assert len(names) > 5
    assert [(page, name) for page, name in names if not (ROOT / name).exists()] == []


def test_every_test_that_under_fire_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "under_fire.md").read_text())
    assert len(named) > 40
    missing = [(file, name) for file, name in named if not hasattr(importlib.import_module(file[:-3]), name)]
    assert missing == []
