"""What the page on containers has Kubernetes do: it fits the image, the server, and itself."""

from __future__ import annotations

import json
import re
import runpy
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pages
import pytest
from test_echo_server import running

ROOT = pages.DOCS.parent
PAGE = pages.DOCS / "how_to" / "containers.md"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def shown(name: str) -> str:
    """The file of that name that the page shows."""
    (text,) = [block.text for block in pages.blocks(PAGE) if block.options.get("caption") == name]
    return text


def loaded(text: str) -> Any:
    """A document in the little of YAML that the page needs: maps, lists, blocks of text, and plain values.

    It fails for anything else; that it is right is tested where there is a real parser.
    """
    return _value([line for line in text.splitlines() if line.strip()])


def _value(lines: list[str]) -> Any:
    if lines[0].strip() == "|":
        return textwrap.dedent("\n".join(lines[1:])) + "\n"
    indent = len(lines[0]) - len(lines[0].lstrip())
    parts: list[list[str]] = []
    for line in lines:
        assert not line[:indent].strip(), f"less indented than what it belongs to: {line!r}"
        if line[indent] == " ":
            parts[-1].append(line[indent:])
        else:
            parts.append([line[indent:]])
    if parts[0][0].startswith("- "):
        return [_value(["  " + first.removeprefix("- "), *rest]) for first, *rest in parts]
    if not re.match(r"\w+:( |$)", parts[0][0]):
        ((scalar,),) = parts
        return _scalar(scalar)
    result = {}
    for first, *rest in parts:
        key, value = re.fullmatch(r"(\w+):(?: (.+))?", first).groups()
        assert key not in result
        assert bool(value) != bool(rest), f"{key} has no value, or two"
        result[key] = _scalar(value) if value else _value(rest)
    return result


def _scalar(text: str) -> Any:
    assert not re.match(r"[\[\]{}&*!|>'\"%@`#]", text), f"more YAML than is known here: {text!r}"
    return json.loads(text) if re.fullmatch(r"\d+|true|false", text) else text


@pytest.fixture(scope="module")
def deployment():
    return loaded(shown("echo.yaml").split("---\n")[0])


@pytest.fixture(scope="module")
def service():
    return loaded(shown("echo.yaml").split("---\n")[1])


@pytest.fixture(scope="module")
def container(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def options(container):
    """What the echo server makes of its part of the command."""
    parser = runpy.run_path(str(ROOT / "examples" / "echo_server.py"))["parser"]()
    return parser.parse_args(container["command"][2:])


@pytest.mark.parametrize("name", ["echo.yaml", "liveness.yaml"])
def test_a_real_parser_reads_the_same(name):
    yaml = pytest.importorskip("yaml", reason="yaml is not installed")
    assert [loaded(text) for text in shown(name).split("---\n")] == list(yaml.safe_load_all(shown(name)))


def test_the_parts_find_each_other(deployment, service):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels


def test_the_server_listens_where_it_is_looked_for(container, service, options):
    (port,) = container["ports"]
    assert options.bind == ("0.0.0.0", port["containerPort"])
    assert f"\nEXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert [published["targetPort"] for published in service["spec"]["ports"]] == [port["name"]]


def test_it_is_the_image_that_the_page_builds_and_what_is_in_it(container):
    assert f"docker build -t {container['image']} ." in PAGE.read_text()
    for path in container["command"][:2]:
        assert f'"{path}"' in DOCKERFILE  # as in its own command


def test_it_is_killed_only_after_all_that_it_may_take_to_stop(deployment, container, options):
    waiting = container["lifecycle"]["preStop"]["sleep"]["seconds"] + options.close_timeout
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > waiting
    assert options.idle_timeout > 0


def test_it_runs_as_the_user_of_the_image(container):
    rights = container["securityContext"]
    assert f"\nUSER {rights['runAsUser']}:" in DOCKERFILE
    assert rights["runAsUser"] > 0
    assert rights["runAsNonRoot"] is True
    assert rights["allowPrivilegeEscalation"] is False


def test_its_probe_tells_a_server_that_answers_from_one_that_does_not(container):
    interpreter, option, program = container["readinessProbe"]["exec"]["command"]
    assert (interpreter, option) == (container["command"][0], "-c")

    def is_ready(port, timeout):
        code = program.replace("8000", str(port)).replace("timeout=3", f"timeout={timeout}")
        return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0

    with running() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        assert is_ready(server.address.rpartition(":")[2], 20)
        assert not is_ready(silent.getsockname()[1], 0.1)


def test_the_other_probe_asks_what_the_server_above_it_answers():
    probe = loaded(shown("liveness.yaml"))["livenessProbe"]["httpGet"]
    assert f"GET {probe['path']} HTTP/1.0" in PAGE.read_text()
    assert f"{probe['port']}), Health" in shown("server.py")
