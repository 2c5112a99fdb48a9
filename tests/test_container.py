"""The container image, built and run with the engine that ``CONTAINER_ENGINE`` names (``docker``, ``podman``, …).

``CONTAINER_BASE_IMAGE`` names a base image to use instead of the one in the Dockerfile.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pages
import pytest
from load import Load
from stages import PATIENCE

ENGINE = os.environ.get("CONTAINER_ENGINE")
BASE_IMAGE = os.environ.get("CONTAINER_BASE_IMAGE")
ROOT = Path(__file__).parent.parent

#: The options that remove privileges, as on the page.
PAGE = (pages.DOCS / "how_to" / "containers.md").read_text()
RIGHTS = re.search(r"^docker run --rm (--.*) --name", PAGE, re.MULTILINE)[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENGINE, reason="CONTAINER_ENGINE is not set"),
    pytest.mark.timeout(900),
]


def engine(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Podman stores health checks only in images with Docker's format.
    environment = {**os.environ, "BUILDAH_FORMAT": "docker"}
    answer = subprocess.run([str(ENGINE), *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert not check or answer.returncode == 0, answer.stdout + answer.stderr
    return answer


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    name = f"ngi-echo-{uuid.uuid4().hex}"
    base = ["--build-arg", f"BASE_IMAGE={BASE_IMAGE}"] if BASE_IMAGE else []
    engine("build", *base, "-t", name, ".")
    yield name
    engine("rmi", "-f", name)


@pytest.fixture
def start(image: str) -> Iterator[Callable[..., str]]:
    names = []

    def run(*command: str, options: Sequence[str] = ()) -> str:
        names.append(f"ngi-echo-{uuid.uuid4().hex}")
        engine("run", "-d", *RIGHTS.split(), "--name", names[-1], "-p", "127.0.0.1::8000", *options, image, *command)
        return names[-1]

    yield run
    for name in names:
        engine("kill", name, check=False)  # rm would give it time to stop
        engine("rm", "-f", name)


def inspected(name: str, what: str) -> Any:
    return json.loads(engine("inspect", "--format", "{{json " + what + "}}", name).stdout)


def published(name: str) -> tuple[str, int]:
    host, port = engine("port", name, "8000/tcp").stdout.split()[0].rsplit(":", 1)
    return host, int(port)


def connect(name: str) -> socket.socket:
    return socket.create_connection(published(name), timeout=60)


def wait_until_it_listens(name: str) -> None:
    wait_until_it_says(name, "listening on 0.0.0.0:8000")


def wait_until_it_says(name: str, *lines: str) -> None:
    """Wait until the container has printed these lines, and none before them."""
    logs = subprocess.Popen([str(ENGINE), "logs", "-f", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for line in lines:
            assert logs.stdout.readline().decode() == f"{line}\n"
    finally:
        logs.kill()
        logs.communicate()


def exit_code(name: str) -> int:
    """Wait until the container has stopped; return its exit code."""
    return int(engine("wait", name).stdout)


def stop_while_it_serves(name: str, client: socket.socket) -> None:
    """Stop the container.  *client* must get one more answer, and then the container must end with exit code 0."""
    stopping = threading.Thread(target=engine, args=["stop", "-t", "30", name])
    stopping.start()
    client.sendall(b"one more")
    assert client.recv(100) == b"ONE MORE"
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b""
    stopping.join()
    assert inspected(name, ".State.ExitCode") == 0


def healthy(name: str) -> bool:
    kind, *command = inspected(name, ".Config.Healthcheck.Test")
    assert kind == "CMD"
    return engine("exec", name, *command, check=False).returncode == 0


def test_the_container_answers_is_healthy_and_stops_after_its_clients_have_finished(start):
    name = start()
    wait_until_it_listens(name)
    with connect(name) as client:
        client.sendall(b"hello out there")
        assert client.recv(100) == b"HELLO OUT THERE"
        assert healthy(name)
        stop_while_it_serves(name, client)
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 0 connections"


def test_a_client_that_stays_does_not_keep_the_container_running(start):
    name = start()
    wait_until_it_listens(name)
    with connect(name) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        engine("stop", name)  # the engine's default time to stop applies
        assert client.recv(100) == b""
    assert inspected(name, ".State.ExitCode") == 0
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 1 connection"


def test_a_container_stopped_under_load_finishes_its_requests(start):
    """If the engine forwards the port, it resets clients that connect late.  The test ignores these."""
    name = start()
    wait_until_it_listens(name)
    load = Load(published(name))
    load.wait_for(1000)
    began = time.monotonic()
    engine("stop", "-t", "30", name)
    assert time.monotonic() - began < 8
    load.join()
    assert load.wrong == []
    assert inspected(name, ".State.ExitCode") == 0
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 0 connections"


def test_a_server_that_does_not_answer_is_unhealthy(start):
    assert not healthy(start("python", "-c", "import time; time.sleep(600)"))


@pytest.fixture
def slow(tmp_path) -> list[str]:
    """Options that make Python take a second to start, and print when it does."""
    (tmp_path / "sitecustomize.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(1)\n")
    tmp_path.chmod(0o755)
    return ["-e", "PYTHONPATH=/slow", "-v", f"{tmp_path}:/slow:ro"]


def test_a_signal_during_the_imports_of_process_1_is_not_lost(start, slow):
    name = start(options=slow)
    wait_until_it_says(name, "importing")
    engine("kill", "-s", "TERM", name)
    assert exit_code(name) == 0
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 0 connections"


BUSY = """\
import _thread, hashlib
from ngi_gevent import signals
stop = signals.catch_stop()
_thread.start_new_thread(lambda: print("caught", stop.wait(), flush=True), ())
print("busy", flush=True)
{}
"""


@pytest.mark.parametrize("handler", ["while True: pass", "hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"])
def test_a_second_signal_ends_process_1_although_a_handler_never_yields(start, handler):
    name = start("python", "-c", BUSY.format(handler))
    wait_until_it_says(name, "busy")
    engine("kill", "-s", "TERM", name)
    wait_until_it_says(name, "busy", "caught True")
    engine("kill", "-s", "TERM", name)
    assert exit_code(name) == 143


def test_a_server_with_max_connections_open_is_healthy(start):
    command = ["python", "echo_server.py", "--bind=0.0.0.0:8000", "--health=127.0.0.1:8001", "--max-connections=1"]
    name = start(*command)
    wait_until_it_listens(name)
    with connect(name) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        assert healthy(name)


def test_the_image_is_small(image):
    base = BASE_IMAGE or re.search(r"^ARG BASE_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert inspected(image, ".Size") - inspected(base, ".Size") < 60_000_000


def test_the_image_lists_its_packages(start):
    name = start()
    listed = engine("exec", name, "cat", "/opt/ngi/packages.txt").stdout.split()
    pinned = re.findall(r"^([\w.-]+==[\w.]+)", (ROOT / "examples/container/requirements.txt").read_text(), re.MULTILINE)
    assert {line.replace(".", "-", 1) if line.startswith("zope") else line for line in listed} >= set(pinned)
    assert len(listed) == len(pinned) + 1
    assert [line for line in listed if line.startswith("ngi_gevent==")]


def test_the_container_has_few_privileges_and_no_tools(start):
    name = start()
    assert int(engine("exec", name, "id", "-u").stdout) != 0
    status = dict(re.findall(r"^(\w+):\t(.*)$", engine("exec", name, "cat", "/proc/1/status").stdout, re.MULTILINE))
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "Read-only file system" in engine("exec", "-u", "0", name, "touch", "/new", check=False).stderr
    for module in "pip", "setuptools":
        assert engine("exec", name, "python", "-c", f"import {module}", check=False).returncode != 0
    assert engine("exec", name, "ls", "/src", check=False).returncode != 0


def test_gunicorn_uses_all_its_cores_is_healthy_and_stops(start):
    name = start("gunicorn")
    deadline = time.monotonic() + PATIENCE
    while not healthy(name):
        assert time.monotonic() < deadline
    with connect(name) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        assert engine("logs", name).stderr.count("Booting worker") == len(os.sched_getaffinity(0))
        stop_while_it_serves(name, client)
    assert "Shutting down: Master" in engine("logs", name).stderr


def test_gunicorn_loses_no_signal_while_it_starts(start, slow):
    name = start("gunicorn", options=slow)
    wait_until_it_says(name, "importing")
    engine("kill", "-s", "TERM", name)
    assert exit_code(name) == 0
