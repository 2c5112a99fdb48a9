"""The manifest on the page on Kubernetes fits the image, the server, and itself."""

from __future__ import annotations

import json
import re
import runpy
import socket
import textwrap
from typing import Any

import pages
import pytest
from programs import read_all
from stages import PATIENCE
from test_echo_server import running

ROOT = pages.DOCS.parent
CONTAINER = ROOT / "examples" / "container"
PAGE = pages.DOCS / "how_to" / "kubernetes.md"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def shown(name: str) -> str:
    """Return the file that the page shows under that name."""
    (text,) = [block.text for block in pages.blocks(PAGE) if block.options.get("caption") == name]
    return text


def loaded(text: str) -> Any:
    """Parse the part of YAML that the page needs: maps, lists, blocks of text, and plain values.

    Other text fails. If a real parser is installed, a test compares the results with it.
    """
    return _value([line for line in text.splitlines() if line.strip()])


def _value(lines: list[str]) -> Any:
    if lines[0].strip() == "|":
        return textwrap.dedent("\n".join(lines[1:])) + "\n"
    indent = len(lines[0]) - len(lines[0].lstrip())
    parts: list[list[str]] = []
    for line in lines:
        assert not line[:indent].strip(), f"less indented than its parent: {line!r}"
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
def budget():
    return loaded(shown("echo.yaml").split("---\n")[2])


@pytest.fixture(scope="module")
def autoscaler():
    return loaded(shown("echo.yaml").split("---\n")[3])


@pytest.fixture(scope="module")
def container(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def options(container):
    """The options that the echo server parses from its part of the command."""
    parser = runpy.run_path(str(ROOT / "examples" / "echo_server.py"))["parser"]()
    return parser.parse_args(container["args"][2:])


def test_a_real_parser_gives_the_same_result():
    yaml = pytest.importorskip("yaml", reason="yaml is not installed")
    text = shown("echo.yaml")
    assert [loaded(part) for part in text.split("---\n")] == list(yaml.safe_load_all(text))


def test_the_selectors_match_the_labels(deployment, service, budget, autoscaler):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])


def test_the_autoscaler_has_its_metric_and_alone_sets_the_number_of_pods(deployment, container, autoscaler):
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["resource"]["name"] in container["resources"]["requests"]
    assert "replicas" not in deployment["spec"]
    assert autoscaler["spec"]["minReplicas"] > 1  # the budget must allow the eviction of one pod


def test_the_server_listens_on_the_ports_of_the_service_and_the_probes(container, service, options):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options.bind == ("0.0.0.0", ports["echo"])
    assert options.health == ("0.0.0.0", ports["health"])
    assert "\nEXPOSE {echo} {health}\n".format(**ports) in DOCKERFILE
    assert [published["targetPort"] for published in service["spec"]["ports"]] == ["echo"]


def test_the_container_runs_the_image_that_the_page_builds_and_its_command(container):
    assert f"docker build -t {container['image']} ." in (PAGE.parent / "containers.md").read_text()
    assert "command" not in container  # this would replace the entry point of the image
    assert '\nCMD ["' + '", "'.join(container["args"][:2]) + '", ' in DOCKERFILE  # the command of the image


def test_the_pod_is_killed_only_after_the_longest_time_to_stop(deployment, container, options):
    waiting = container["lifecycle"]["preStop"]["sleep"]["seconds"] + options.close_timeout
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > waiting
    assert options.idle_timeout > 0


def test_the_container_runs_as_the_user_of_the_image(container):
    rights = container["securityContext"]
    assert f"\nUSER {rights['runAsUser']}:" in DOCKERFILE
    assert rights["runAsUser"] > 0
    assert rights["runAsNonRoot"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["capabilities"]["drop"] == ["ALL"]


def probed(port, path):
    """Return whether Kubernetes would accept the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.30\r\n\r\n".encode())
        return read_all(client).startswith(b"HTTP/1.0 200 ")


def test_the_probes_distinguish_a_full_server_from_a_stopping_one(container):
    probes = [container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")]
    assert [probe["port"] for probe in probes] == ["health", "health"]
    ready, alive = (probe["path"] for probe in probes)
    with running("--health=127.0.0.1:0", "--max-connections=1") as server, server.connect() as client:
        port = int(server.process.stdout.readline().rpartition(b":")[2])
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        assert probed(port, ready)
        assert probed(port, alive)
        server.stop()
        while probed(port, ready):
            pass
        assert probed(port, alive)


def test_the_dockerfile_pins_everything_that_it_downloads():
    assert re.search(r"^ARG BASE_IMAGE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    installs = [line for line in DOCKERFILE.splitlines() if " install " in line or "pip wheel " in line]
    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []
    for name in "requirements.txt", "build.txt":
        pinned = re.sub(r"^#.*\n", "", (CONTAINER / name).read_text(), flags=re.MULTILINE)
        assert re.fullmatch(r"(?:[\w.-]+==[\w.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n)+", pinned)


def test_the_pinned_gevent_is_new_enough_for_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r'^dependencies = \["gevent>=([\d.]+)"\]$', project, re.MULTILINE)[1]
    pinned = re.search(r"^gevent==([\d.]+)", (CONTAINER / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert [int(part) for part in pinned.split(".")] >= [int(part) for part in needed.split(".")]
