"""A release: what is built is complete, and its page on an index has links that lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.*)"$', PROJECT, re.MULTILINE)[1]

#: The address of the repository, which has no other place than this one.
HOME = re.search(r'^Repository = "(.*)"$', PROJECT, re.MULTILINE)[1]

#: The files that are read outside of a checkout, or say where the project is.
FILES = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "pyproject.toml", "docs/reference/versions.md"]


def test_the_changelog_begins_with_the_version():
    newest = re.search(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == VERSION
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", newest[2])


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_all_links_are_absolute(name):
    """Since the page of an index has no files beside it."""
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert [picture for picture in pictures if not picture.startswith(f"{HOME}/raw/main/")] == []


@pytest.mark.parametrize("name", FILES)
def test_links_to_the_repository_lead_to_its_files(name):
    text = (ROOT / name).read_text()
    stem = HOME.rpartition("/")[0]
    assert [link for link in re.findall(rf"{re.escape(stem)}[^\s)\"'|>`]*", text) if not link.startswith(HOME)] == []
    files = re.findall(rf"{re.escape(HOME)}/(?:blob|raw)/main/([\w./-]+\w)", text)
    assert len(files) > (20 if name == "README.md" else -1)
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built of it."""
    folder = tmp_path_factory.mktemp("release")
    # A copy, since what earlier builds have left in a checkout would get into the distribution.
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "_build")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    run(sys.executable, "-m", "build", "--outdir", folder, folder / "checkout")
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def run(*command: object) -> str:
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_built_passes_the_check_of_the_index(built):
    pytest.importorskip("twine", reason="twine is not installed")
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built).count("PASSED") == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_built_has_the_package_and_nothing_else(built):
    sdist, wheel = built
    package = {
        str(path.relative_to(ROOT)) for path in (ROOT / "ngi_gevent").rglob("*") if path.suffix in (".py", ".typed")
    }
    package.add("pytest_ngi_gevent.py")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == package
    assert f"ngi_gevent-{VERSION}.dist-info/licenses/LICENSE" in names
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside > {*package, "README.md", "LICENSE", "pyproject.toml"}


ECHO = """\
import ngi_gevent, ngi_gevent.signals, ngi_gevent.systemd
from ngi_gevent import message
listener = ngi_gevent.listener(None, lambda connection: (connection.write(b"it works"), connection.close()))
print(message.message(ngi_gevent.connect, listener.address, b"").decode())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_built_can_be_installed_into_an_empty_environment(built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    python = tmp_path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", built[1])
    assert "No broken requirements" in run(*pip, "check")
    assert f"ngi_gevent=={VERSION}\n" in run(*pip, "list", "--format=freeze")
    assert run(python, "-I", "-c", ECHO) == "it works\n"
