"""A client of the echo server: sends its arguments, and prints the answer.

    python examples/echo_client.py hello out there

With the certificate of the server, or of the authority that signed it, the client uses TLS.
"""

from __future__ import annotations

import argparse
import ssl
import sys

import ngi_gevent
from ngi_gevent.interfaces import IConnection, Reason


class Client:
    """A client connect handler, which is the connection's handler, too."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.answer = b""

    def connected(self, connection: IConnection) -> None:
        connection.set_handler(self)
        connection.write(self.text)

    def failed_connect(self, reason: Reason) -> None:
        raise ngi_gevent.ConnectionFailed(reason)

    def handle_input(self, connection: IConnection, data: bytes) -> None:
        self.answer += data  # the answer can arrive in pieces, however it was sent
        if len(self.answer) >= len(self.text):
            connection.close()  # then nothing is pending, and wait() returns

    def handle_close(self, connection: IConnection, reason: Reason) -> None:
        # Called only if this side has not closed the connection, so the answer is incomplete.
        hint = "" if self.answer or connection.ssl_object else "; a server that uses TLS needs --certificate"
        raise ngi_gevent.UnexpectedResponse(f"the connection ended ({reason}) after {self.answer!r}{hint}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--certificate", metavar="FILE", help="of the server, or of the authority that signed it")
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()

    client = Client(" ".join(options.words).encode())
    context = ssl.create_default_context(cafile=options.certificate) if options.certificate else None
    with ngi_gevent.Inline() as script:  # raises the exceptions of handlers; other implementations log them
        script.connect(("localhost", options.port), client, ssl_context=context, timeout=10)
        script.wait(30)
    print(client.answer.decode())


if __name__ == "__main__":
    try:
        main()
    except (ngi_gevent.NGIError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
