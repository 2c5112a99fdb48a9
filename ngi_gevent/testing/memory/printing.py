"""Handlers that print what happens, for doctests."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.connection import END_OF_INPUT

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["PrintingClient", "PrintingHandler", "TextPrintingHandler"]


class PrintingHandler:
    """A connection handler that prints what happens, for doctests.

    Input is printed as ``-> b'...'``, 50 characters a line, with ``.>`` before all but the first; the end as
    ``-> CLOSE``, and the reason if the peer has not simply finished; what an iterable raised as ``-> EXCEPTION``, its
    class, and what it says.
    """

    def handle_input(self, connection: Any, data: bytes) -> None:
        text = repr(data)
        for start in range(0, len(text), 50):
            print(".>" if start else "->", text[start : start + 50])

    def handle_close(self, connection: Any, reason: Reason) -> None:
        print("-> CLOSE" if reason == END_OF_INPUT else f"-> CLOSE {reason}")

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        print("-> EXCEPTION", type(exception).__name__, exception)


class PrintingClient(PrintingHandler):
    """A client connect handler that prints what its connection receives."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.failed: Reason = "it is made after the callback that asks for it"

    def connected(self, connection: Any) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason


class TextPrintingHandler(PrintingHandler):
    """A printing handler that prints input as the UTF-8 text that it is."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def handle_input(self, connection: Any, data: bytes) -> None:
        sys.stdout.write(self._decoder.decode(data))
