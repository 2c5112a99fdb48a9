"""The README: its code runs, and the files, modules and figures in it exist."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_the_example_passes_its_own_test():
    example: dict = {}
    exec(EXAMPLE, example)
    example["test_echo"]()


def test_the_example_serves_on_sockets(tcp):
    example: dict = {}
    exec(EXAMPLE, example)
    client = tcp.client(tcp.listen(example["Echo"]))
    client.connection.write(b"hello out there")
    tcp.until(lambda: client.data == b"HELLO OUT THERE")


def test_the_main_program_of_the_example_serves():
    """The program runs in a separate process, on a free port instead of the port in the example."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        code = EXAMPLE.replace('("127.0.0.1", 8000)', f"socket.socket(fileno={bound.fileno()})")
        program = subprocess.Popen([sys.executable, "-c", f"import socket\n{code}\nmain()"], pass_fds=[bound.fileno()])
        try:
            with socket.create_connection(bound.getsockname(), timeout=30) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"HELLO"
        finally:
            program.kill()
            program.wait()


def test_every_file_in_the_readme_exists():
    names = re.findall(r"\b(?:examples|tests|docs|benchmarks)/[\w./]+\w", README)
    assert names
    assert [name for name in names if not (ROOT / name).exists() and name != "docs/_build"] == []


def test_the_figures_in_the_readme_match_the_benchmarks():
    section = README.partition("## How fast it is")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    results = (ROOT / "benchmarks" / "results" / "results.md").read_text().splitlines()
    assert len(table) > 5
    assert [line for line in table if line not in results] == []


def test_every_module_in_the_readme_exists():
    modules = re.findall(r"^\| `(ngi_gevent[\w.]*)`", README, re.MULTILINE)
    assert len(modules) > 3
    for name in modules:
        assert importlib.util.find_spec(name), name  # the module is not imported, since that can need an extra
