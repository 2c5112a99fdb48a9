"""The reference: it has every public name, each name has a docstring, and the limits have the documented values."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
from extras import skip_unless_installed

from ngi_gevent import adapters, errors, proxy_protocol, reconnecting, relay
from ngi_gevent.blocking import input
from ngi_gevent.core import datagram, logs, output
from ngi_gevent.core.options import LINGER_TIMEOUT
from ngi_gevent.sockets import (
    attempts,
    binding,
    crowd,
    datagram_socket,
    dispatcher,
    lifetime,
    linger,
    listener,
    probe,
    sender,
    transport,
    watchdog,
)
from ngi_gevent.testing import simulation
from ngi_gevent.testing.simulation import Simulation
from ngi_gevent.testing.simulation.limits import MOST_WITHOUT_TIME

ROOT = Path(__file__).parent.parent
REFERENCE = pages.DOCS / "reference"

#: The modules that users import from.
PUBLIC = [
    "ngi_gevent",
    "ngi_gevent.adapters",
    "ngi_gevent.blocking",
    "ngi_gevent.generator",
    "ngi_gevent.gunicorn",
    "ngi_gevent.interfaces",
    "ngi_gevent.message",
    "ngi_gevent.metrics",
    "ngi_gevent.proxy_protocol",
    "ngi_gevent.reconnecting",
    "ngi_gevent.relay",
    "ngi_gevent.signals",
    "ngi_gevent.systemd",
    "ngi_gevent.testing",
    "ngi_gevent.testing.contract",
    "ngi_gevent.testing.simulation",
]

#: A directive, all the names that it documents, and its options.
_DIRECTIVE = re.compile(r"^\.\. (auto|py:)(?:\w+):: (.*\n(?:[ ]{5,}\S.*\n)*)((?:[ ]+:.*\n)*)", re.MULTILINE)


def documented():
    """Return the documented names, each with its documented members, in the order of the pages."""
    found = {}
    for page in sorted(REFERENCE.glob("*.md")):
        for _, names, options in _DIRECTIVE.findall(page.read_text()):
            members = re.findall(r":members: (.+)", options)
            for name in names.split("\n"):
                if re.match(r"\s*(ngi_gevent|pytest_ngi_gevent)\b", name):
                    found[name.strip().partition("(")[0]] = members[0].split(", ") if members else []
    return found


def thing_named(name):
    module = name
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module = module.rpartition(".")[0]
    for part in name[len(module) + 1 :].split(".") if name != module else ():
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module):
    skip_unless_installed(module)
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert public - set(documented()) == set()


def test_the_readme_lists_only_public_modules():
    listed = re.findall(r"^\| `(ngi_gevent[\w.]*)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(listed) > 3
    assert set(listed) <= set(PUBLIC)


def test_the_fixtures_are_in_the_reference():
    import pytest_ngi_gevent

    fixtures = {name for name in pytest_ngi_gevent.__all__ if not name.startswith("pytest_")}
    assert len(fixtures) == 4
    assert {f"pytest_ngi_gevent.{name}" for name in fixtures} <= set(documented())


@pytest.mark.parametrize(("name", "members"), documented().items())
def test_each_documented_name_exists_and_has_a_docstring(name, members):
    skip_unless_installed(name)
    thing = thing_named(name)
    for described in [thing, *(getattr(thing, member) for member in members)]:
        if inspect.isroutine(described) or inspect.isclass(described) or inspect.ismodule(described):
            assert described.__doc__, described


def rows(page):
    """Return the rows of the tables of *page*, each as a list of cells without marks of code."""
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in (REFERENCE / page).read_text().splitlines()
        if line.startswith("| ")
    ]


def amount(text):
    """Return the number at the beginning of *text*, in bytes or seconds."""
    number, unit = re.fullmatch(r"([\d,.]+)(?: (KiB|MiB))?.*", text).groups()
    return float(number.replace(",", "")) * {"KiB": 1024, "MiB": 1024 * 1024, None: 1}[unit]


def test_the_limits_have_the_documented_values():
    limits = {row[0]: row[-2] for row in rows("limits.md")}
    assert amount(limits["backlog"]) == listener.BACKLOG
    assert amount(limits["output_limit"]) == output.OUTPUT_LIMIT
    assert amount(limits["handshake_timeout"]) == transport.HANDSHAKE_TIMEOUT
    assert amount(limits["linger_timeout"]) == LINGER_TIMEOUT
    assert amount(limits["buffer_size"]) == datagram.BUFFER_SIZE
    assert amount(limits["max_line"]) == adapters.MAX_LINE
    assert amount(limits["size"]) == adapters.MAX_LINE
    sizes = [row[2] for row in rows("limits.md") if row[0] == "max_size"]
    assert list(map(amount, sizes)) == [adapters.MAX_LINE, adapters.MAX_SIZE, adapters.MAX_SIZE]
    timeouts = [row[2] for row in rows("limits.md") if row[0] == "timeout"]
    assert amount(timeouts[0]) == transport.CONNECT_TIMEOUT
    assert timeouts[1:] == ["none"]
    fixed = [row[1] for row in rows("limits.md") if len(row) == 3][-24:]
    assert list(map(amount, fixed)) == [
        *(output.HIGH_WATER, sender.GATHERED, 1000 * dispatcher.TURN, 1_000_000 * input.SLICE, probe.PROBE_INTERVAL),
        *(linger.SEND_TIMEOUT, linger.DISCARD_TIMEOUT),
        *(linger.DISCARD_SIZE / linger.DISCARD_PAUSE, linger.CHECK_INTERVAL, linger.SEND_TIMEOUT),
        *(binding.LOCK_TIMEOUT, 1000 * attempts.STAGGER, datagram_socket.SEND_TIMEOUT),
        relay.LAST_DELIVERY,
        proxy_protocol.LONGEST,
        *(datagram.MOST_RAISED, crowd.MOST_FAILED, listener.HANDLER_TIMEOUT, crowd.MOST_WITHOUT_HANDLER),
        *(crowd.MOST_REFUSED, linger.SEND_TIMEOUT, lifetime.MOST_LOGGED),
        *(watchdog.MOST_SLOW, 1),
    ]
    assert "in 10 seconds" in fixed[-1]
    assert logs.RATE_PERIOD == 10
    assert amount(limits["max_turns"]) == inspect.signature(Simulation).parameters["max_turns"].default
    (turns,) = re.findall(r"`Spins` after ([\d,]+) turns", (REFERENCE / "limits.md").read_text())
    assert amount(turns) == MOST_WITHOUT_TIME
    assert amount(limits["max_descriptors"]) == inspect.signature(Simulation.host).parameters["max_descriptors"].default
    (below,) = re.findall(r"`below` of `drain` \((.*?)\)", (REFERENCE / "limits.md").read_text())
    assert amount(below) == output.LOW_WATER
    assert amount(limits["first"]) == reconnecting.FIRST_PAUSE
    assert amount(limits["longest"]) == reconnecting.LONGEST_PAUSE


def test_limits_mentions_every_option_of_a_listener():
    import ngi_gevent

    text = (REFERENCE / "limits.md").read_text()
    options = {
        name
        for name, parameter in inspect.signature(ngi_gevent.listener).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert "backlog" in options
    assert {option for option in options - {"ssl_context"} if f"`{option}`" not in text} == set()


def test_the_documented_command_line_is_the_echo_servers():
    (shown,) = [block.text for block in pages.blocks(REFERENCE / "echo_server.md") if block.language == "text"]
    said = subprocess.run(
        [sys.executable, "examples/echo_server.py", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    # Each version of Python breaks the lines before this one differently.
    beginning = "Send back all input"
    assert shown[shown.index(beginning) :] == said[said.index(beginning) :]


#: Exceptions that no caller catches: they belong to Python's protocols, or to methods that a subclass defines.
PROTOCOLS = {"AttributeError", "NotImplementedError", "StopIteration"}


def test_every_exception_is_in_the_table():
    names = [row[0].removeprefix("{py:class}~") for row in rows("exceptions.md")][2:]
    listed = {thing_named(name if "." in name else f"builtins.{name}") for name in names}
    assert {getattr(errors, name) for name in errors.__all__} - listed == set()
    assert {getattr(simulation.errors, name) for name in simulation.errors.__all__} - listed == set()
    raised = set()
    package = Path(errors.__file__).parent  # perhaps of an installed wheel
    rules = package / "testing" / "contract" / "rules"
    for path in {*package.rglob("*.py")} - {*rules.glob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Raise(exc=ast.Name(name) | ast.Call(func=ast.Name(name))):
                    raised.add(name)
    raised &= set(vars(builtins))
    assert {"OSError", "TypeError"} < raised
    assert {
        name for name in raised - PROTOCOLS if not issubclass(getattr(builtins, name), tuple(listed - {BaseException}))
    } == set()
