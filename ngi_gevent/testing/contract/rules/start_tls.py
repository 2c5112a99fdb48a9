"""Rules for ``start_tls``, as far as an implementation without TLS can also keep them.

The contexts have no certificates, so that no key is needed.
"""

from __future__ import annotations

import ssl

import pytest

from ngi_gevent import ConnectionClosed, adapters
from ngi_gevent.testing.contract.witness import Witness

#: Key exchanges that use no certificate.
ANONYMOUS = "AECDH-AES256-SHA:ADH-AES256-GCM-SHA384:@SECLEVEL=0"


def anonymous_context(protocol):
    """Return a context of *protocol*, for one side of TLS without certificates."""
    context = ssl.SSLContext(protocol)
    if protocol is ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(ANONYMOUS)
    except ssl.SSLError:
        pytest.skip("this OpenSSL has no key exchange without certificates")
    return context


def start_as_client(connection):
    connection.start_tls(anonymous_context(ssl.PROTOCOL_TLS_CLIENT))


class LineWitness(Witness):
    """A handler that answers lines, and starts TLS on request."""

    def connected(self, connection):
        self.meet(connection)
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection, line):
        super().handle_input(self.connection, line)
        if line == b"STARTTLS":
            connection.write(b"go ahead, ")
            connection.start_tls(anonymous_context(ssl.PROTOCOL_TLS_SERVER), server_side=True)
        connection.write(line.lower() + b"\n")


def talk(stage, witness=Witness):
    """Connect to a server that can start TLS, if the connections of *stage* have not begun with it."""
    client, served = stage.talk(LineWitness, witness)
    if client.connection.ssl_object is not None:
        with pytest.raises(RuntimeError, match="already has TLS"):
            start_as_client(client.connection)
        pytest.skip("connections of this stage have TLS already")
    return client, served


def finish_with_tls(stage, client, served):
    """Start TLS on the side of a client that has sent ONE and STARTTLS, send TWO, and end the conversation."""
    stage.until(lambda: client.data.startswith(b"one\ngo ahead, "))
    start_as_client(client.connection)
    client.connection.write(b"TWO\n")
    client.connection.write_eof()
    stage.until(lambda: client.closed and served.closed)


def test_a_conversation_goes_on_with_tls(stage):
    client, served = talk(stage)
    client.connection.write(b"ONE\nSTARTTLS\n")
    finish_with_tls(stage, client, served)
    assert client.data == b"one\ngo ahead, starttls\ntwo\n"
    assert served.trace == [b"ONE", b"STARTTLS", b"TWO", ("close", "end of input")]


def test_a_client_starts_tls_in_a_callback(stage):
    class Client(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data.startswith(b"go ahead, "):
                start_as_client(connection)
                connection.write(b"X" * 100_000 + b"\n")

    client, _ = talk(stage, Client)
    client.connection.write(b"STARTTLS\n")
    stage.until(lambda: client.size >= 100_000 + len(b"go ahead, starttls\n\n"))
    assert client.data == b"go ahead, starttls\n" + b"x" * 100_000 + b"\n"


def test_tls_is_started_once(stage):
    client, _ = talk(stage)
    client.connection.write(b"STARTTLS\n")
    stage.until(lambda: client.data.startswith(b"go ahead, "))
    start_as_client(client.connection)
    for again in client.connection, adapters.Base(client.connection):
        with pytest.raises(RuntimeError, match="already has TLS"):
            start_as_client(again)
    client.connection.write(b"TWO\n")
    stage.until(lambda: client.data.endswith(b"two\n"))


def test_tls_does_not_cut_an_iterable_in_two(stage):
    client, _ = talk(stage)

    def lines():
        yield b"ONE\n"
        with pytest.raises(RuntimeError, match="drain"):
            start_as_client(client.connection)
        yield b"TWO\n"

    client.connection.writelines(lines())
    stage.until(lambda: client.data == b"one\ntwo\n")


def test_tls_does_not_begin_after_an_end(stage):
    errors = []

    class Ended(Witness):
        def handle_eof(self, connection):
            with pytest.raises(ConnectionClosed) as caught:
                start_as_client(connection)
            errors.append(caught.value)
            connection.write(b"answer")
            connection.close()

    client, _ = stage.talk(Ended)
    for _ in "output", "connection":
        client.connection.write_eof()
        with pytest.raises(ConnectionClosed):
            start_as_client(client.connection)
        stage.until(lambda: client.closed)
    assert client.data == b"answer"
    assert [error.reason for error in errors] == ["end of input"]


class ParsedWitness(Witness):
    """Cuts lines with a parser, and takes it off for TLS."""

    def connected(self, connection):
        self.meet(connection)
        self.parse(connection)

    def parse(self, connection):
        buffer = bytearray()

        def events():
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                yield line

        adapters.SansIO(connection, buffer.extend, events).set_handler(self)

    def handle_input(self, connection, line):
        super().handle_input(self.connection, line)
        if line != b"STARTTLS":
            connection.write(line.lower() + b"\n")
            return
        context = anonymous_context(ssl.PROTOCOL_TLS_SERVER)
        with pytest.raises(RuntimeError, match="detach"):
            connection.start_tls(context, server_side=True)
        connection.write(b"go ahead, ")
        below, _ = connection.detach()
        below.start_tls(context, server_side=True)
        self.parse(below)
        below.write(b"begun\n")


def test_a_parser_that_was_taken_off_does_not_prevent_tls(stage):
    """Plaintext behind the command stays with that parser."""
    client, served = stage.talk(ParsedWitness)
    if client.connection.ssl_object is not None:
        pytest.skip("connections of this stage have TLS already")
    client.connection.write(b"ONE\nSTARTTLS\nDELETE everything\n")
    finish_with_tls(stage, client, served)
    assert client.data == b"one\ngo ahead, begun\ntwo\n"
    assert served.trace == [b"ONE", b"STARTTLS", b"TWO", ("close", "end of input")]


def test_an_unusable_argument_of_start_tls_is_an_error_at_the_call(stage):
    client, _ = stage.talk()
    start_tls = client.connection.start_tls
    anonymous, strict = anonymous_context(ssl.PROTOCOL_TLS_CLIENT), ssl.create_default_context()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for error, arguments in [
        (TypeError, {"ssl_context": None}),
        (TypeError, {"ssl_context": anonymous, "timeout": "1"}),
        (TypeError, {"ssl_context": anonymous, "server_hostname": b"localhost"}),
        (ValueError, {"ssl_context": strict}),
        (ValueError, {"ssl_context": anonymous, "server_side": True}),
        (ValueError, {"ssl_context": server, "server_side": True, "server_hostname": "localhost"}),
        (ValueError, {"ssl_context": anonymous, "timeout": -1}),
    ]:
        with pytest.raises(error):
            start_tls(**arguments)
    with pytest.raises(TypeError, match=r"; got None; make one with ssl\.create_default_context"):
        start_tls(None)
    assert client.connection


__all__ = [name for name in dir() if name.startswith("test_")]
