r"""An SMTP server that accepts messages only over TLS, after STARTTLS, and prints a line for each.

It needs a file with a certificate and its key, in PEM.  ``tls_echo.py`` shows how to make one for a trial.

    python examples/starttls_server.py localhost.pem
    printf 'EHLO me\nMAIL FROM:<ann@example.org>\nRCPT TO:<bob@example.org>\nDATA\nhello\n.\nQUIT\n' | \
        openssl s_client -quiet -crlf -starttls smtp -connect localhost:8000 -CAfile localhost.crt
"""

from __future__ import annotations

import argparse
import re
import signal
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent

import ngi_gevent
from ngi_gevent.adapters import Lines

#: Bytes of the longest line, and of the longest message.
MAX_LINE, MAX_MESSAGE = 1000, 1024 * 1024

MAX_RECIPIENTS = 100

#: The arguments of MAIL and RCPT.
FROM, TO = (re.compile(rb"%s: ?<([^<>\s]*)>.*" % name, re.IGNORECASE) for name in (b"FROM", b"TO"))


class Message(NamedTuple):
    sender: bytes
    recipients: list[bytes]
    text: bytes


class SMTPHandler:
    """A connection with one client."""

    def __init__(self, connection: Any, context: ssl.SSLContext, deliver: Callable[[Message], object]) -> None:
        self._context = context
        self._deliver = deliver
        self._has_tls = False
        self._forget()
        Lines(connection, MAX_LINE, crlf=True).set_handler(self)
        connection.write(b"220 localhost ESMTP\r\n")

    def _forget(self) -> None:
        """Forget the message that has begun."""
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._lines: list[bytes] | None = None  # lines of the text, while it is received
        self._size = 0

    def handle_input(self, connection: Any, line: bytes) -> None:
        if self._lines is not None:
            if line == b".":
                connection.write(self._end_of_text() + b"\r\n")
            else:
                self._take_text(line.removeprefix(b"."))
            return
        command, _, argument = line.partition(b" ")
        command = command.upper()
        if command == b"STARTTLS" and not self._has_tls:
            connection.write(b"220 go ahead\r\n")
            connection.start_tls(self._context, server_side=True)
            self._has_tls = True
            self._forget()  # an attacker may have sent it, in plaintext
        elif command == b"QUIT":
            connection.write(b"221 bye\r\n")
            connection.close()
        else:
            connection.write(self._answer(command, argument) + b"\r\n")

    def _answer(self, command: bytes, argument: bytes) -> bytes:
        if command in (b"EHLO", b"HELO", b"RSET"):
            self._forget()
            offers = command == b"EHLO" and not self._has_tls
            return b"250-localhost\r\n250 STARTTLS" if offers else b"250 localhost"
        if command == b"NOOP":
            return b"250 ok"
        if command not in (b"MAIL", b"RCPT", b"DATA"):
            return b"500 unknown command"
        if not self._has_tls:
            return b"530 Must issue a STARTTLS command first"
        if command == b"DATA":
            if not self._recipients:
                return b"503 RCPT first"
            self._lines = []
            return b"354 end with a dot on a line"
        return self._take_address(command, argument)

    def _take_address(self, command: bytes, argument: bytes) -> bytes:
        match = (FROM if command == b"MAIL" else TO).fullmatch(argument)
        if match is None:
            return b"501 an address is <name@host>"
        if (self._sender is None) != (command == b"MAIL"):
            return b"503 first MAIL, then RCPT"
        if command == b"MAIL":
            self._sender = match[1]
        elif len(self._recipients) < MAX_RECIPIENTS:
            self._recipients.append(match[1])
        else:
            return b"452 too many recipients"
        return b"250 ok"

    def _take_text(self, line: bytes) -> None:
        self._size += len(line) + 2
        if self._lines is not None and self._size <= MAX_MESSAGE:
            self._lines.append(line)

    def _end_of_text(self) -> bytes:
        is_whole = self._size <= MAX_MESSAGE
        if is_whole and self._sender is not None and self._lines is not None:
            self._deliver(Message(self._sender, self._recipients, b"".join(line + b"\r\n" for line in self._lines)))
        self._forget()
        return b"250 delivered" if is_whole else b"552 the message is too long"


def smtp_server(context: ssl.SSLContext, deliver: Callable[[Message], object]) -> Callable[[Any], SMTPHandler]:
    """Return a server that calls *deliver* with each message."""
    return lambda connection: SMTPHandler(connection, context, deliver)


def show(message: Message) -> None:
    recipients = b", ".join(message.recipients)
    print(f"{len(message.text)} bytes from {message.sender.decode()!r} to {recipients.decode()!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("certificate", help="file with a certificate and its key")
    options = parser.parse_args()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.certificate)
    listener = ngi_gevent.listener(("127.0.0.1", options.port), smtp_server(context, show), idle_timeout=300)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
