"""The log: one entry per event, with its level and logger; no entries per message, and none that a peer can forge."""

from __future__ import annotations

import ast
import io
import logging
import pkgutil
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

import gevent
import pages
import pytest
from certificates import server_context
from gevent.event import Event
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent import adapters, blocking
from ngi_gevent.core import logs
from ngi_gevent.message import message
from ngi_gevent.sockets import linger
from ngi_gevent.testing.contract.simulated import BlockingSocket


class Echo(Witness):
    def handle_input(self, connection, data):
        connection.write(data)
        super().handle_input(connection, data)


@pytest.fixture
def lines(caplog):
    """A function that returns the entries from a level on: the logger without ``ngi_gevent.``, the level, and the
    message.
    """

    def lines(level=logging.DEBUG):
        return [
            (record.name.removeprefix("ngi_gevent."), record.levelname, record.getMessage())
            for record in caplog.records
            if record.levelno >= level
        ]

    caplog.set_level(logging.DEBUG, logger="ngi_gevent")
    return lines


def test_the_life_of_a_connection_is_logged(tcp, lines):
    listener = tcp.listen(Echo)
    client = tcp.client(listener)
    for _ in range(10):
        client.connection.write(b"a message")
    tcp.until(lambda: len(client.data) == 90)
    (server,) = listener.connections()
    client.connection.close()
    tcp.until(lambda: tcp.served[0].closed)
    listener.close()
    server, client = server.peer_address, client.connection.peer_address
    # The listener of an earlier test may still be closing, on the thread of its hub.
    own = [line for line in lines() if repr(client) in line[2] or repr(server) in line[2]]
    assert sorted(own) == sorted(
        [
            ("connection", "DEBUG", f"connection with {server!r} accepted, on {client!r}"),
            ("connection", "DEBUG", f"connection with {server!r} ended: end of input"),
            ("connection", "DEBUG", f"connection with {client!r} ended: closed"),
            ("connection", "DEBUG", f"connection with {client!r} made"),
            ("listener", "INFO", f"listening on {client!r}"),
            ("listener", "INFO", f"no longer listening on {client!r}"),
        ]
    )


def test_an_abort_and_the_reset_at_the_peer_are_logged(tcp, lines):
    client = tcp.client(tcp.listen(Echo))
    client.connection.abort()
    tcp.until(lambda: tcp.served and tcp.served[0].closed)
    ends = [message for _, _, message in lines() if "ended" in message]
    assert ends == [
        f"connection with {client.connection.peer_address!r} ended: aborted",
        f"connection with {client.connection.local_address!r} ended: {logs.format_reason(tcp.served[0].closed)}",
    ]
    assert isinstance(tcp.served[0].closed, ConnectionResetError)


def test_a_failed_connection_attempt_is_logged(tcp, lines):
    client = Witness(tcp)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        tcp.implementation.connect(unused.getsockname(), client)
        tcp.until(lambda: client.failed)
        assert lines() == [
            (
                "attempt",
                "DEBUG",
                f"connection attempt to {unused.getsockname()!r} failed: {logs.format_reason(client.failed)}",
            ),
        ]


def test_limits_are_logged_at_level_info_by_default(simulated, lines):
    listener = simulated.listen(Echo, idle_timeout=60)
    simulated.client(listener)
    simulated.until(lambda: simulated.served and simulated.served[0].closed)
    (line,) = [line for line in lines(logging.INFO) if line[0] == "connection"]
    assert line[1] == "INFO"
    assert "idle_timeout" in line[2]
    assert repr(simulated.served[0].connection.peer_address) in line[2]


def test_too_much_output_is_logged(stage, lines):
    listener = stage.listen(output_limit=10)
    peer = stage.peer(listener)
    stage.until(lambda: stage.served)
    served = stage.served[0]
    with suppress(ngi_gevent.ConnectionClosed):
        for _ in range(1000):
            served.connection.write(b"x" * 100_000)
    stage.until(lambda: served.closed)
    (line,) = [line for line in lines(logging.INFO) if line[0] == "connection"]
    assert line[1:] == (
        "INFO",
        f"connection with {served.connection.peer_address!r} ended: LimitExceeded: {served.closed}",
    )
    assert "output_limit" in line[2]
    peer.close()


def test_a_line_that_is_too_long_is_logged(tcp, lines):
    def serve(connection):
        lines = adapters.Lines(connection, max_line=10)
        served.append(lines)
        lines.set_handler(Echo(tcp))

    served = []
    client = tcp.client(tcp.listen(serve))
    client.connection.write(b"0123456789ten\nERROR root: all is lost\n")
    tcp.until(lambda: client.closed)
    (line,) = [line for line in lines(logging.INFO) if line[0] == "connection"]
    assert line[1] == "INFO"
    assert line[2].startswith(f"connection with {served[0].peer_address!r} ended: LimitExceeded: the peer sent")
    assert "all is lost" not in line[2]


def test_an_exception_of_a_handler_is_one_line_and_its_traceback(tcp, caplog):
    class Raising(Witness):
        def handle_input(self, connection, data):
            raise ValueError("no")

    client = tcp.client(tcp.listen(Raising))
    client.connection.write(b"anything")
    tcp.until(lambda: client.closed)
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert (record.name, record.levelname) == ("ngi_gevent.connection", "ERROR")
    assert record.exc_info[0] is ValueError
    assert record.getMessage() == (
        f"connection with {client.connection.local_address!r}: handle_input raised an exception"
    )


FORGED = "x\nERROR root: all is lost \x1b[2J"


def test_the_path_of_a_unix_socket_cannot_forge_log_entries(tcp, lines, tmp_path):
    listener = tcp.implementation.listener(str(tmp_path / "listening"), tcp.server(Echo))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / FORGED))
        stranger.connect(listener.address)
        tcp.until(lambda: tcp.served)
        stranger.close()
        tcp.until(lambda: tcp.served[0].closed)
    listener.close()
    told = [message for _, _, message in lines() if "lost" in message]
    assert len(told) == 2
    assert all(message.isprintable() for message in told)


def test_input_of_a_client_without_tls_cannot_forge_log_entries(tcp, lines):
    listener = tcp.listen(Echo, ssl_context=server_context())
    peer = tcp.peer(listener)
    peer.send(FORGED.encode())
    peer.read()
    tcp.until(lambda: peer.ended)
    name, level, message = lines(logging.INFO)[1]
    assert (name, level) == ("connection", "INFO")
    assert message.startswith("connection with ('127.0.0.1', ")
    assert "SSLError: " in message
    assert message.isprintable()
    peer.close()


def test_the_life_of_a_udp_listener_is_logged(tcp, lines):
    listener = tcp.implementation.udp_listener(None, print)
    listener.close()
    assert lines() == [
        ("datagram", "INFO", f"receiving datagrams on {listener.address!r}"),
        ("datagram", "INFO", f"no longer receiving datagrams on {listener.address!r}"),
    ]


def test_the_repr_of_a_connection_and_its_listener_shows_their_state(stage):
    listener = stage.listen()
    peer = stage.peer(listener)
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    shown = repr(connection)
    assert shown.startswith(f"<{type(connection).__name__} {connection.local_address!r} to ")
    assert shown.endswith(f"{connection.peer_address!r}, open, handler: Witness, bytes pending: 0>")
    assert repr(listener) == f"<{type(listener).__name__} on {listener.address!r}, accepting, connections: 1>"
    peer.close()
    stage.until(lambda: stage.served[0].gone)
    assert repr(connection).endswith(f"{connection.peer_address!r}, closed>")
    listener.close()
    assert repr(listener).endswith(", closed, connections: 0>")


def test_the_pending_work_of_wait_is_named(tcp):
    listener = tcp.listen()
    with pytest.raises(ngi_gevent.Timeout) as caught:
        tcp.implementation.wait(0.01)
    assert repr(listener) in str(caught.value)


def lines_on_the_page():
    """Return the log lines on the page about logging, with their loggers and levels."""
    shown, logger = {}, ""
    for row in (pages.DOCS / "how_to" / "logging.md").read_text().splitlines():
        if found := re.fullmatch(r"\| (?:`(ngi_gevent\.\w+)` )?\| ([A-Z, ]+) \| (.*) \|", row):
            logger = found[1] or logger
            shown[without_values(found[3])] = logger, found[2]
    return shown


def without_values(line):
    """Return a line of the page, with an ellipsis for each value."""
    return re.sub(r"\b(?!PROXY\b)[A-Z]{4,}\b", "…", line)


METHODS = {"debug", "info", "warning", "error", "log"}


def lines_in_the_source():
    """Yield the log lines in the package's source, with their loggers and levels."""
    for line, (logger, level, _) in calls_in_the_source():
        yield line, (logger, level)


def calls_in_the_source():
    """Yield the log lines as above, and whether each has a rate limit."""
    for found in pkgutil.walk_packages(ngi_gevent.__path__, "ngi_gevent."):
        if found.name.startswith("ngi_gevent.testing"):
            continue
        spec = found.module_finder.find_spec(found.name)  # an import could need an extra
        for call in ast.walk(ast.parse(Path(spec.origin).read_text())):
            match call:
                case ast.Call(func=ast.Attribute(ast.Attribute(ast.Name("logs"), name), method)) if method in METHODS:
                    (text,) = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                    logger = f"ngi_gevent.{name.removesuffix('s')}"
                    options = {keyword.arg for keyword in call.keywords}
                    levels = "DEBUG, ERROR" if "exc_info" in options else "DEBUG, INFO"
                    level = levels if method == "log" else method.upper()
                    yield re.sub(r"%[.\d]*[a-z]", "…", text), (logger, level, "limit" in options)


def test_the_page_has_every_line_and_no_other():
    assert lines_on_the_page() == dict(lines_in_the_source())


def test_the_page_lists_the_entries_with_a_rate_limit():
    text = (pages.DOCS / "how_to" / "logging.md").read_text()
    (kinds,) = re.findall(r"have a rate limit:\n\n(.*?)\n\n", text, re.S)
    phrases = [without_values(phrase) for phrase in re.findall(r"`([^`]+)`", kinds) if "max_" not in phrase]
    assert len(phrases) == 10
    limited = {line for line, (_, _, is_limited) in calls_in_the_source() if is_limited}
    for phrase in phrases:
        assert any(phrase in line for line in limited), phrase
    for line, _ in lines_in_the_source():
        assert any(phrase in line for phrase in phrases) == (line in limited), line


def test_a_reason_that_quotes_much_input_of_the_peer_is_cut(tcp, lines):
    class Decodes(Witness):
        def handle_input(self, connection, data):
            data.decode("ascii")

    client = tcp.client(tcp.listen(Decodes))
    client.connection.write(b"\xff" * 10_000)
    tcp.until(lambda: client.closed)
    (message,) = [message for _, _, message in lines() if "UnicodeDecodeError" in message]
    assert len(message) < 300


# Log handlers are foreign code.


class Collector(logging.Handler):
    """Calls a test's function with each record, as a handler that sends records elsewhere may."""

    def __init__(self, do):
        super().__init__()
        self.do = do

    # In this method, logging handlers wait for their locks, and logging does not catch exceptions.
    def handle(self, record):
        self.do(record)
        return True


@pytest.fixture
def collect():
    """A function that registers another one, which then gets each record of the package from DEBUG on."""
    logger = logging.getLogger("ngi_gevent")
    before = logger.level
    collectors = []

    def collect(do):
        collectors.append(Collector(do))
        logger.addHandler(collectors[-1])
        logger.setLevel(logging.DEBUG)

    yield collect
    logger.setLevel(before)
    for collector in collectors:
        logger.removeHandler(collector)


def wait_a_turn(record):
    """Wait as for a lock that another greenlet holds.  On the hub, gevent refuses this."""
    gevent.sleep(0)


def test_a_log_that_waits_ends_no_connection_and_no_listener(simulated, collect):
    collect(wait_a_turn)
    listener = simulated.listen(Echo, idle_timeout=60)
    clients = [simulated.client(listener) for _ in range(3)]
    for client in clients:
        client.connection.write(b"hello")
    simulated.until(lambda: all(client.data == b"hello" for client in clients))
    simulated.until(lambda: all(client.closed for client in clients))
    simulated.until(lambda: all(served.gone for served in simulated.served))
    assert [str(served.closed) for served in simulated.served] == [
        "nothing was received or sent for 60 seconds (idle_timeout)"
    ] * 3
    closed = Event()
    gevent.get_hub().loop.run_callback(lambda: (listener.close(), closed.set()))
    closed.wait()
    with pytest.raises(ConnectionRefusedError):
        BlockingSocket(simulated.implementation, listener.address)


def test_a_log_that_waits_does_not_hide_an_end_that_the_hub_detects(tcp, collect, monkeypatch):
    """The hub also detects an end if the kernel accepts no more output, or another thread calls."""
    monkeypatch.setattr(linger, "SEND_TIMEOUT", 0.05)
    collect(wait_a_turn)
    tcp.peer(tcp.listen())
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    connection.write(b"x" * 50_000_000)
    gevent.get_hub().threadpool.apply(connection.close)
    tcp.until(lambda: tcp.served[0].gone)


def test_a_log_that_writes_to_the_logged_connection_reaches_the_limit_once(tcp, collect):
    def write(record):
        for served in tcp.served:
            if served.connection:
                served.connection.write(b"x" * 1000)

    collect(write)
    tcp.peer(tcp.listen(output_limit=10))
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    with suppress(ngi_gevent.ConnectionClosed):
        for _ in range(1000):
            connection.write(b"x" * 100_000)
    tcp.until(lambda: tcp.served[0].closed)
    assert isinstance(tcp.served[0].closed, ngi_gevent.LimitExceeded)


def test_a_log_that_raises_does_not_prevent_handle_close(tcp, collect, capfd):
    def raise_at_the_end(record):
        if "ended" in record.getMessage():
            raise RuntimeError("the log is full")

    collect(raise_at_the_end)
    client = tcp.client(tcp.listen(Echo))
    client.connection.close()
    tcp.until(lambda: tcp.served and tcp.served[0].gone and client.gone)
    assert tcp.served[0].closed == "end of input"
    assert "the log is full" in capfd.readouterr().err


def raise_error(record):
    raise RuntimeError("the log is full")


@pytest.fixture(params=["handler", "filter"])
def broken_log(request, collect):
    """A log whose handler or filter raises for every record."""
    if request.param == "handler":
        collect(raise_error)
        yield
        return
    loggers = [logging.getLogger(f"ngi_gevent.{name}") for name in ("connection", "listener", "datagram")]
    collect(lambda record: None)  # this sets the level
    for logger in loggers:
        logger.addFilter(raise_error)
    yield
    for logger in loggers:
        logger.removeFilter(raise_error)


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_raises_changes_nothing(stage, capfd):
    """The test covers a connection, and a listener of either kind, from beginning to end."""

    class Raising(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            raise ValueError(data)

        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            raise ValueError(reason)

    def raise_it(address, data):
        received.append(data)
        stage.happened()
        raise ValueError(data)

    received = []
    listener = stage.listen(Raising, max_connections=1)  # with this limit, the test detects a lost slot
    for _ in range(3):
        peer = stage.peer(listener)
        peer.send(b"hello")
        peer.read()
        stage.until(lambda peer=peer: peer.ended)
        peer.close()
    stage.until(lambda: len(stage.served) == 3 and all(served.gone for served in stage.served))
    assert [served.data for served in stage.served] == [b"hello"] * 3
    assert all(isinstance(served.closed, ValueError) for served in stage.served)
    assert listener.close_wait(PATIENCE) == 0
    datagrams = stage.listen_udp(raise_it, buffer_size=10)
    for data in b"one", b"x" * 11, b"two":
        stage.implementation.udp(datagrams.address, data)
    stage.until(lambda: len(received) == 2)
    datagrams.close()
    stage.implementation.wait(PATIENCE)
    assert "the log is full" in capfd.readouterr().err


@pytest.mark.usefixtures("broken_log")
def test_if_the_log_raises_a_failed_handshake_still_frees_its_slot(tcp):
    listener = tcp.listen(Echo, ssl_context=server_context(), max_connections=1)
    for _ in range(2):
        peer = tcp.peer(listener)
        peer.send(b"no TLS at all")
        peer.read()
        tcp.until(lambda peer=peer: peer.ended)
        peer.close()
    assert listener.close_wait(PATIENCE) == 0


@pytest.mark.usefixtures("broken_log")
def test_errors_of_the_log_are_shown_only_if_logging_shows_them(tcp, capfd, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    tcp.listen(Echo).close()
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("stderr", [None, io.TextIOWrapper(io.BytesIO())])
def test_errors_of_the_log_need_no_standard_error(tcp, monkeypatch, stderr):
    if stderr is not None:
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    tcp.listen(Echo).close()


@pytest.mark.parametrize("words", ["handle_input raised", "handle_close raised", "ended"])
def test_if_a_greenlet_is_ended_while_the_log_blocks_its_slot_is_freed(tcp, collect, words):
    """A Timeout that a handler did not cancel can do this.  It does not concern the log, so it must propagate."""

    def end(record):
        if words in record.getMessage():
            raise gevent.Timeout(0)

    class Raising(Witness):
        def handle_input(self, connection, data):
            raise ValueError(data)

        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            raise ValueError(reason)

    listener = tcp.listen(Raising)
    collect(end)
    client = tcp.client(listener)
    client.connection.write(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].gone)
    assert isinstance(tcp.served[0].closed, ValueError)
    assert not listener._connections


class Odd(Exception):
    """An exception whose text is an attempt to forge a log entry."""

    def __str__(self):
        return FORGED

    def __repr__(self):
        return FORGED


class Broken(Exception):
    def __str__(self):
        raise ValueError("not even this")


@pytest.mark.parametrize("error", [Odd(), Broken()])
def test_the_text_of_an_exception_cannot_forge_log_entries(tcp, lines, error):
    class Raising(Witness):
        def handle_input(self, connection, data):
            raise error

    client = tcp.client(tcp.listen(Raising))
    client.connection.write(b"x")
    tcp.until(lambda: tcp.served and tcp.served[0].gone)
    (line,) = [message for _, _, message in lines() if "ended: " + type(error).__name__ in message]
    assert line.isprintable()


def test_a_limit_reached_on_another_connection_is_an_error_of_the_function(tcp, lines, caplog):
    """A server written with files logs this.  Faults of a peer affect only that peer's connection."""

    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 100)
            connection.close()

    other = tcp.listen(Long)

    @blocking.server
    def ask(input, output):
        message(tcp.implementation.connect, other.address, b"?", max_size=10)

    peer = tcp.peer(tcp.listen(ask))
    peer.read()
    tcp.until(lambda: peer.ended)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info[0] is ngi_gevent.LimitExceeded


def test_a_failed_handshake_is_one_line(simulated, lines):
    listener = simulated.listen(Echo, ssl_context=server_context())
    refused, silent = simulated.peer(listener), simulated.peer(listener)
    refused.send(b"no TLS at all")
    refused.read()
    silent.read()
    simulated.until(lambda: refused.ended and silent.ended)
    told = [line for line in lines() if line[0] == "connection"]
    assert len(told) == 2
    assert all("the TLS handshake failed: " in message for _, _, message in told)
