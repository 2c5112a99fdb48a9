"""A release: its distributions are complete, and the links on its index page lead to existing files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.*)"$', PROJECT, re.MULTILINE)[1]

#: The address of a repository.
HOME = "https://example.org/ngi_gevent"


def test_the_changelog_begins_with_the_version():
    newest = re.search(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == VERSION
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", newest[2])


def links_in(text: str) -> list[str]:
    """Return the targets of the links and pictures of a page."""
    return re.findall(r"\]\(([^)]*)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    links = [link.partition("#")[0] for link in links_in((ROOT / name).read_text())]
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).is_file()] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    pytest.importorskip("twine", reason="twine is not installed")
    folder = tmp_path_factory.mktemp("release")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    answer = run(ROOT / ".ci/release", HOME, folder, env={**os.environ, "PATH": path})
    assert answer.count("PASSED") == 2
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def run(*command: object, **options: Any) -> str:
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_links_of_the_index_page_lead_to_files(built):
    with zipfile.ZipFile(built[1]) as archive:
        metadata = archive.read(f"ngi_gevent-{VERSION}.dist-info/METADATA").decode()
    assert f"Project-URL: Repository, {HOME}\n" in metadata
    files = {"raw": [], "blob": []}
    for link in links_in(metadata):
        assert link.startswith("https://")
        if found := re.fullmatch(rf"{HOME}/(raw|blob)/v{VERSION}/([^#]*)(#.*)?", link):
            files[found[1]].append(found[2])
    assert files["raw"] == ["benchmarks/results/chart.svg"]
    assert len(files["blob"]) > 20
    assert [file for file in files["blob"] + files["raw"] if not (ROOT / file).is_file()] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_distribution_has_only_the_package(built):
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
def test_the_distribution_can_be_installed_into_an_empty_environment(built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    python = tmp_path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", built[1])
    assert "No broken requirements" in run(*pip, "check")
    assert f"ngi_gevent=={VERSION}\n" in run(*pip, "list", "--format=freeze")
    assert run(python, "-I", "-c", ECHO) == "it works\n"
