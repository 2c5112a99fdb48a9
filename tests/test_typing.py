"""Typed programs, checked against the installed package alone, like the programs of its users."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import venv
from pathlib import Path

import pages
import pytest

import ngi_gevent

TYPED = Path(__file__).parent / "typed"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed"),
    pytest.mark.timeout(200),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """A function that runs ``mypy --strict`` in an environment with the package, but without gevent's types."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    python = environment / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')"]
    installed = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    (installed / "ngi_gevent").symlink_to(Path(ngi_gevent.__file__).parent)

    def check(path):
        options = [
            "--strict",
            "--config-file=",
            f"--cache-dir={environment / 'cache'}",
            f"--python-executable={python}",
        ]
        command = [sys.executable, "-m", "mypy", *options, str(path)]
        checked = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=100)
        return checked.stdout + checked.stderr

    return check


@pytest.mark.parametrize("name", ["right.py", "mistakes.py"])
def test_correct_programs_pass_and_each_mistake_is_found(check, name):
    """The test also finds superfluous marks: an ``ignore`` without a mistake is a mistake itself."""
    assert check(TYPED / name) == "Success: no issues found in 1 source file\n"


def test_without_its_marks_each_mistake_is_reported_at_its_place(check, tmp_path):
    """The test above could pass because nothing is checked.  This test excludes that."""
    marked = (TYPED / "mistakes.py").read_text()
    mark = re.compile(r"  # type: ignore\[[\w, -]+\]")
    lines = {number for number, line in enumerate(marked.splitlines(), 1) if mark.search(line)}
    assert len(lines) > 90
    (tmp_path / "unmarked.py").write_text(mark.sub("", marked))
    told = check(tmp_path / "unmarked.py")
    assert {int(number) for number in re.findall(r"^unmarked\.py:(\d+): error", told, re.MULTILINE)} == lines


def test_the_page_on_types_has_no_mistakes(check, tmp_path):
    (tmp_path / "greeter.py").write_text(pages.module(pages.DOCS / "how_to" / "types.md"))
    assert check(tmp_path / "greeter.py") == "Success: no issues found in 1 source file\n"
