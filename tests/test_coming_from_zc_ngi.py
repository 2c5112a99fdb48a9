"""Coming from zc.ngi: no name of the original is missing from the page, and what it says to use instead is there."""

from __future__ import annotations

import importlib
import logging
import re
from functools import reduce

import pages
import pytest

PAGE = (pages.DOCS / "zc_ngi" / "names.md").read_text()

#: All pages that name successors.
PAGES = [pages.DOCS / "coming_from_zc_ngi.md", *(pages.DOCS / "zc_ngi").glob("*.md")]

#: The public names of zc.ngi 2.1.0: all names without an underscore that its modules define, except for its tests.
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
    """The cells of the table of *module*."""
    section = re.search(rf"^## {re.escape(module)}(?:,[^\n]*)?\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, module
    table = [line.split(" | ") for line in section[1].splitlines() if line.startswith("| ")]
    return table[2:]


@pytest.mark.parametrize("module", NAMES)
def test_no_name_is_missing(module):
    named = {name for row in rows(module) for name in re.findall(r"`([\w.]+)[^`]*`", row[0])}
    assert set(NAMES[module].split()) - named == set()


@pytest.mark.parametrize("module", NAMES)
def test_every_name_has_an_answer(module):
    assert [row for row in rows(module) if len(row) != 3 or not row[1].strip()] == []


def found(name):
    """What *name* stands for: a logger, a module, or something in one."""
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


def test_what_it_says_to_use_is_there():
    named = {name for page in PAGES for name in re.findall(r"`(ngi_gevent[\w.]*\w)", page.read_text())}
    assert len(named) > 50
    for name in named:
        found(name)


def test_what_is_not_there_is_found():
    with pytest.raises(AttributeError):
        found("ngi_gevent.adapters.Nothing")
