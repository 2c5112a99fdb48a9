"""Sessions of real protocols, for the other servers: the parsers and the answers of the examples.

Sessions do no input or output, so the servers differ only in that.  For ngi_gevent, the example itself is the server.
The answers to one piece of input are returned together, since asyncio and ``sendall`` would make a system call for
each.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from benchmarks.processes import HERE

__all__ = ["SESSIONS", "HTTPSession", "RESPSession", "Session", "example"]


@cache
def example(name: str) -> Any:
    """Load the module of an example."""
    sys.path.append(str(HERE.parent / "examples"))
    return importlib.import_module(name)


@cache
def _commands() -> Any:
    return example("resp_server").Commands({})


class Session(Protocol):
    """The server's side of one connection."""

    #: Whether the server closes the connection after the answer.
    ended: bool

    def answer(self, data: bytes) -> bytes:
        """Return the answers to the requests that *data* completes."""


class RESPSession:
    """RESP, with the parser of hiredis, as in ``examples/resp_server.py``."""

    def __init__(self) -> None:
        import hiredis

        self.ended = False
        self._example = example("resp_server")
        self._reader = hiredis.Reader()
        self._protocol_error = hiredis.ProtocolError
        self._run = _commands().run
        self._unread = 0

    def answer(self, data: bytes) -> bytes:
        answers = []
        try:
            self._feed(data)
            for command in iter(self._reader.gets, False):
                self._unread = 0
                if type(command) is not list or {*map(type, command)} != {bytes}:
                    raise self._protocol_error(command)
                answers.append(self._answer_to(command))
        except self._protocol_error:
            answers.append(b"-ERR Protocol error\r\n")
            self.ended = True
        return b"".join(answers)

    def _feed(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > self._example.MAX_COMMAND:
            raise self._protocol_error("too long")
        self._reader.feed(data)

    def _answer_to(self, command: list[bytes]) -> bytes:
        try:
            answer: bytes = self._run(command)
        except self._example.BadCommand as error:
            return f"-ERR {error}\r\n".encode()
        return answer


class HTTPSession:
    """HTTP/1.1, with the parser of h11, as in ``examples/http_server.py``."""

    def __init__(self) -> None:
        import h11

        self.ended = False
        self._example = example("http_server")
        self._h11 = h11
        self._http = h11.Connection(h11.SERVER)
        self._request: Any = None
        self._body: list[bytes] = []
        self._size = 0

    def answer(self, data: bytes) -> bytes:
        h11, http = self._h11, self._http
        sent: list[bytes] = []
        try:
            http.receive_data(data)
            while not self.ended and (event := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if type(event) is h11.Request:
                    self._request, self._body, self._size = event, [], 0
                    if http.they_are_waiting_for_100_continue:
                        sent.append(http.send(h11.InformationalResponse(status_code=100, headers=[])))
                elif type(event) is h11.Data:
                    self._size += len(event.data)
                    self._body.append(bytes(event.data))
                    self.ended = self._size > self._example.MAX_BODY
                elif type(event) is h11.EndOfMessage:
                    sent += self._response(self._example.respond(self._request, b"".join(self._body)))
                else:
                    self.ended = True
        except h11.RemoteProtocolError:
            self.ended = True
        return b"".join(sent)

    def _response(self, response: Any) -> list[bytes]:
        h11, http = self._h11, self._http
        headers = [("Content-Type", "text/plain")]
        if response.size is not None:
            headers.append(("Content-Length", str(response.size)))
        sent = [http.send(h11.Response(status_code=response.status, headers=headers))]
        if self._request.method != b"HEAD":
            sent += [http.send(h11.Data(data=piece)) for piece in response.body]
        sent.append(http.send(h11.EndOfMessage()))
        if http.our_state is h11.MUST_CLOSE:
            self.ended = True
        else:
            http.start_next_cycle()
        return sent


SESSIONS: dict[str, Callable[[], Session]] = {"resp": RESPSession, "http": HTTPSession}
