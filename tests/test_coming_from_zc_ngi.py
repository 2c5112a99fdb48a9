"""Coming from zc.ngi: the page lists every public name of the original, and each replacement that it names exists."""

from __future__ import annotations

import importlib
import logging
import re
from functools import reduce

import pages
import pytest

PAGE = (pages.DOCS / "zc_ngi" / "names.md").read_text()

#: The pages that name replacements.
PAGES = [pages.DOCS / "coming_from_zc_ngi.md", *(pages.DOCS / "zc_ngi").glob("*.md")]

#: The public names of zc.ngi 2.1.0: names without an underscore that its modules define, except its tests.
NAMES = {
    "zc.ngi": "END_OF_DATA",
    "zc.ngi.interfaces": """
        Attribute ConnectionFailed IClientConnectHandler IConnection IConnectionHandler IImplementation IListener
        IServer IServerConnection IUDPHandler IUDPListener Interface Timeout implements moduleProvides
    """,
    "zc.ngi.async": """
        BUFFER_SIZE BaseListener BindError Implementation Implementation.handle_error Implementation.logger
        Implementation.loop Implementation.notify_select Implementation.thread_ident Inline call_from_thread cleanup_map
        connect connector dispatcher expected_socket_read_errors expected_socket_write_errors get_family_from_address
        is_win32 listener main main.loop pid start_thread udp udp_listener wait
    """,
    "zc.ngi.adapters": "Base Base.connection Base.handler Lines Sized sized_iter",
    "zc.ngi.blocking": """
        ConnectionTimeout InputFile OutputFile RequestConnection RequestConnector Timeout connect open request seek tell
    """,
    "zc.ngi.generator": "ConnectionHandler Handler handler",
    "zc.ngi.message": "CouldNotConnect Message UnexpectedResponse message",
    "zc.ngi.testing": """
        Connection Connection.address Connection.closed Connection.control Connection.handler Connection.handler_queue
        Connection.peer Connection.queue Connection.test_close Connection.test_input PrintingHandler TextConnection
        TextPrintingHandler connect connectable connector get_port listener listener.closed listener.connect
        listener.connector peer test_udp_handler udp udp_listener
    """,
    "zc.ngi.wordcount": """
        Client Server client_thread get_port logger sample_docs serve start_server_process stop_server_process wait
    """,
    "zc.ngi.tests": """
        BrokenAfterConnect BrokenConnect assert_ async_evil_setup cleanup setUp test_suite wait_until
        Echo echo_server main
    """,
    "setHandler": "setHandler",
}


def rows(module):
    """Return the cells of each row in the table of *module*."""
    section = re.search(rf"^## {re.escape(module)}(?:,[^\n]*)?\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, module
    table = [line.split(" | ") for line in section[1].splitlines() if line.startswith("| ")]
    return table[2:]


@pytest.mark.parametrize("module", NAMES)
def test_every_name_is_listed(module):
    named = {name for row in rows(module) for name in re.findall(r"`([\w.]+)[^`]*`", row[0])}
    assert set(NAMES[module].split()) - named == set()


@pytest.mark.parametrize("module", NAMES)
def test_every_name_has_a_replacement_or_a_reason(module):
    assert [row for row in rows(module) if len(row) != 3 or not row[1].strip()] == []


def found(name):
    """Return the object called *name*: a logger, a module, or a member of one."""
    if name in logging.root.manager.loggerDict:
        return logging.getLogger(name)
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise AssertionError(name)


def test_every_replacement_exists():
    named = {name for page in PAGES for name in re.findall(r"`(ngi_gevent[\w.]*\w)", page.read_text())}
    assert len(named) > 50
    for name in named:
        found(name)


def test_a_replacement_that_does_not_exist_is_detected():
    with pytest.raises(AttributeError):
        found("ngi_gevent.adapters.Nothing")
