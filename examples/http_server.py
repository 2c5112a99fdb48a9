r"""An HTTP/1.1 server with the parser of h11: keep-alive, chunked bodies, 100-continue, large downloads, TLS.

It needs h11: ``pip install h11``.

    python examples/http_server.py
    printf 'GET /hello HTTP/1.0\r\n\r\n' | nc 127.0.0.1 8000

Other paths are ``/echo``, ``/chunks``, and ``/bytes/200000000`` for as many bytes.
"""

from __future__ import annotations

import argparse
import signal
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import gevent
import h11

import ngi_gevent
from ngi_gevent.adapters import SansIO

#: Bytes of the longest body of a request.
MAX_BODY = 1024 * 1024
PIECE = b"x" * 65536


class Response(NamedTuple):
    status: int
    body: Iterable[bytes]
    size: int | None = None  # of the body; None if unknown, so that the body is sent in chunks


def text(status: int, body: bytes) -> Response:
    return Response(status, [body], len(body))


class HTTPHandler:
    """A connection with one client, which can send many requests."""

    def __init__(self, connection: Any, respond: Callable[[Any, bytes], Response]) -> None:
        self._respond = respond
        self._http = h11.Connection(h11.SERVER)
        self._request: Any = None
        self._body = bytearray()
        adapter = SansIO(connection, self._http.receive_data, self._events, errors=(h11.RemoteProtocolError,))
        adapter.set_handler(self)

    def _events(self) -> Iterator[Any]:
        """Yield the parser's events, until the parser needs data or waits for the response."""
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            yield event

    def handle_input(self, connection: Any, event: Any) -> None:
        if type(event) is h11.Request:
            self._request, self._body = event, bytearray()
            if self._http.they_are_waiting_for_100_continue:
                connection.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        elif type(event) is h11.Data:
            self._body += event.data
            if len(self._body) > MAX_BODY:
                self._refuse(connection, text(413, b"the body is too long\n"))
        elif type(event) is h11.EndOfMessage:
            self._answer(connection, self._respond(self._request, bytes(self._body)))
        elif isinstance(event, h11.RemoteProtocolError):
            self._refuse(connection, text(event.error_status_hint, b"bad request\n"))
        else:
            connection.close()  # the client has ended the connection

    def _answer(self, connection: Any, response: Response) -> None:
        if isinstance(response.body, list):
            connection.write(self._head(response) + b"".join(self._encoded(response.body)))
            self._go_on(connection)
        else:
            connection.pause_reading()  # since the parser would keep all further requests
            connection.write(self._head(response))
            connection.writelines(self._stream(connection, response.body))

    def _head(self, response: Response) -> bytes:
        length = [] if response.size is None else [("Content-Length", str(response.size))]
        headers = [("Content-Type", "text/plain"), *length]
        return bytes(self._http.send(h11.Response(status_code=response.status, headers=headers)))

    def _encoded(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a body as it is sent. For HEAD, yield nothing of it."""
        is_sent = self._request is None or self._request.method != b"HEAD"
        for piece in body if is_sent else ():
            yield self._http.send(h11.Data(data=piece))
        yield self._http.send(h11.EndOfMessage())

    def _stream(self, connection: Any, body: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a body, only as fast as the client reads it, and then continue."""
        yield from self._encoded(body)
        self._go_on(connection)
        connection.resume_reading()
        connection.resume()  # needed here, because the parser has paused during the body

    def _go_on(self, connection: Any) -> None:
        """Handle the next request, or close the connection."""
        if self._http.our_state is h11.MUST_CLOSE:
            connection.close()
        else:
            self._http.start_next_cycle()
            self._request = None

    def _refuse(self, connection: Any, response: Response) -> None:
        """Send a response, if none has begun, and close the connection without handling more requests."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            connection.write(self._head(response) + b"".join(self._encoded(response.body)))
        connection.close()


def respond(request: Any, body: bytes) -> Response:
    """The application: return the response to each request."""
    path = request.target.decode("ascii", "replace")
    if path == "/hello":
        return text(200, b"hello\n")
    if path == "/echo":
        return text(200, body)
    if path == "/chunks":
        return Response(200, (b"chunk %d\n" % number for number in range(10)))
    if path.startswith("/bytes/") and path[7:].isdecimal() and len(path) < 20:
        size = int(path[7:])
        pieces = (PIECE[: min(len(PIECE), size - start)] for start in range(0, size, len(PIECE)))
        return Response(200, pieces, size)
    return text(404, b"not found\n")


def http_server(respond: Callable[[Any, bytes], Response] = respond) -> Callable[[Any], HTTPHandler]:
    """Return a server that sends the responses that *respond* returns."""
    return lambda connection: HTTPHandler(connection, respond)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--certificate", help="a PEM file with the certificate and its key, for TLS")
    options = parser.parse_args()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if options.certificate else None
    if context is not None:
        context.load_cert_chain(options.certificate)
    listener = ngi_gevent.listener(("127.0.0.1", options.port), http_server(), ssl_context=context, idle_timeout=60)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
