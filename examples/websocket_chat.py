r"""A chat over WebSocket, with the parser of wsproto: each message goes to all clients.  ``/`` is a page for browsers.

It needs wsproto: ``pip install wsproto``.

    python examples/websocket_chat.py
    printf 'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' | nc 127.0.0.1 8000
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

import gevent
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

import ngi_gevent
from ngi_gevent.adapters import SansIO

#: Characters of the longest message.  A longer one ends the connection.
MAX_MESSAGE = 64 * 1024

#: Bytes that can wait for a client that does not read, before it is disconnected.
MAX_PENDING = 1024 * 1024

PAGE = b"""<!doctype html><meta charset="utf-8"><title>Chat</title><h1>Chat</h1>
<form><input autofocus> <button>Send</button></form><ol></ol><script>
const socket = new WebSocket(location.href.replace("http", "ws")), list = document.querySelector("ol")
const input = document.querySelector("input")
socket.onmessage = event => { list.append(Object.assign(document.createElement("li"), {textContent: event.data})) }
document.querySelector("form").onsubmit = () => { socket.send(input.value); input.value = ""; return false }
</script>
"""


class Client:
    """One client of the chat."""

    def __init__(self, connection: Any, chat: Chat) -> None:
        self._chat = chat
        self._parser = WSConnection(ConnectionType.SERVER)
        self._message: list[str] = []
        self._size = 0  # the size of the message so far; an empty piece counts as 1
        self.connection = SansIO(connection, self._receive, self._parser.events, errors=(RemoteProtocolError,))
        self.connection.set_handler(self)

    def _receive(self, data: bytes) -> None:
        self._parser.receive_data(data or None)  # None is the end of input

    def send(self, event: Any) -> None:
        """Send an event of the parser, unless the connection has ended."""
        if self.connection:
            self.connection.write(self._parser.send(event))

    def handle_input(self, connection: Any, event: Any) -> None:
        if isinstance(event, Request):
            self.send(AcceptConnection())
            self._chat.clients[self] = None
        elif isinstance(event, TextMessage):
            self._message.append(event.data)
            self._size += max(1, len(event.data))
            if self._size > MAX_MESSAGE:
                self.end(CloseConnection(code=1009, reason="the message is too long"))
            elif event.message_finished:
                self._chat.tell_all("".join(self._message))
                self._message, self._size = [], 0
        elif isinstance(event, Ping):
            self.send(event.response())
        elif isinstance(event, CloseConnection):
            self.end(event.response())
        elif isinstance(event, RemoteProtocolError):
            self._refuse(event)
        else:
            self.end(CloseConnection(code=1003, reason="only text is taken"))

    def _refuse(self, error: Any) -> None:
        """Answer a request that is not for a WebSocket.  Most likely, a browser requests the page."""
        hint = error.event_hint
        if isinstance(hint, RejectConnection):
            self.connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n" % len(PAGE))
            self.connection.write(b"Connection: close\r\n\r\n" + PAGE)
            self.connection.close()
        elif hint is not None:
            self.end(hint)

    def end(self, event: Any) -> None:
        """Send the last event, and close the connection."""
        self._chat.clients.pop(self, None)
        self.send(event)
        self.connection.close()

    def handle_close(self, connection: Any, reason: Any) -> None:
        self._chat.clients.pop(self, None)


class Chat:
    """The server, which has all clients."""

    def __init__(self) -> None:
        self.clients: dict[Client, None] = {}

    def __call__(self, connection: Any) -> None:
        Client(connection, self)

    def tell_all(self, message: str) -> None:
        for client in list(self.clients):
            client.send(TextMessage(data=message))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    chat = Chat()
    listener = ngi_gevent.listener(("127.0.0.1", options.port), chat, output_limit=MAX_PENDING)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
