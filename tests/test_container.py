"""The container, built and run for real with the engine that ``CONTAINER_ENGINE`` names (``docker``, ``podman``, …).

``CONTAINER_BASE_IMAGE`` names the image to build on, where it is not to be that of the Dockerfile.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load import Load

ENGINE = os.environ.get("CONTAINER_ENGINE")
BASE_IMAGE = os.environ.get("CONTAINER_BASE_IMAGE")
ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENGINE, reason="CONTAINER_ENGINE is not set"),
    pytest.mark.timeout(900),
]


def engine(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Podman keeps health checks only in images of Docker's format.
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

    def run(*command: str) -> str:
        names.append(f"ngi-echo-{uuid.uuid4().hex}")
        engine("run", "-d", "--name", names[-1], "-p", "127.0.0.1::8000", image, *command)
        return names[-1]

    yield run
    for name in names:
        engine("rm", "-f", name)


def inspected(name: str, what: str) -> Any:
    return json.loads(engine("inspect", "--format", "{{json " + what + "}}", name).stdout)


def published(name: str) -> tuple[str, int]:
    host, port = engine("port", name, "8000/tcp").stdout.split()[0].rsplit(":", 1)
    return host, int(port)


def connect(name: str) -> socket.socket:
    return socket.create_connection(published(name), timeout=60)


def wait_until_it_listens(name: str) -> None:
    logs = subprocess.Popen([str(ENGINE), "logs", "-f", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert logs.stdout.readline() == b"listening on 0.0.0.0:8000\n"
    finally:
        logs.kill()
        logs.communicate()


def healthy(name: str) -> bool:
    kind, *command = inspected(name, ".Config.Healthcheck.Test")
    assert kind == "CMD"
    return engine("exec", name, *command, check=False).returncode == 0


def test_it_answers_is_healthy_and_stops_when_its_clients_have_finished(start):
    name = start()
    wait_until_it_listens(name)
    with connect(name) as client:
        client.sendall(b"hello out there")
        assert client.recv(100) == b"HELLO OUT THERE"
        assert healthy(name)
        stopping = threading.Thread(target=engine, args=["stop", "-t", "30", name])
        stopping.start()
        client.sendall(b"one more")
        assert client.recv(100) == b"ONE MORE"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    stopping.join()
    assert inspected(name, ".State.ExitCode") == 0
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 0 connections"


def test_a_client_that_stays_does_not_keep_it(start):
    name = start()
    wait_until_it_listens(name)
    with connect(name) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        engine("stop", name)  # in the time that engines give by default
        assert client.recv(100) == b""
    assert inspected(name, ".State.ExitCode") == 0
    assert engine("logs", name).stdout.splitlines()[-1] == "stopped, ending 1 connection"


def test_stopped_under_load_it_finishes_what_it_began(start):
    """Where the engine forwards the port, it resets who is late, so that these are not counted here."""
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


def test_a_server_that_does_not_answer_is_not_healthy(start):
    assert not healthy(start("/opt/ngi/bin/python", "-c", "import time; time.sleep(600)"))


def test_it_has_few_rights_and_no_tools(start):
    name = start()
    assert int(engine("exec", name, "id", "-u").stdout) != 0
    for module in "pip", "setuptools":
        assert engine("exec", name, "/opt/ngi/bin/python", "-c", f"import {module}", check=False).returncode != 0
    assert engine("exec", name, "ls", "/src", check=False).returncode != 0
