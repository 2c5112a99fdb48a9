"""Handlers that print their callbacks, for doctests."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.lifecycle import END_OF_INPUT

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["PrintingClient", "PrintingHandler", "TextPrintingHandler"]


class PrintingHandler:
    """A connection handler that prints its callbacks, for doctests.

    * Input: ``-> b'...'``, 50 characters a line; all lines except the first begin with ``.>``.
    * The end: ``-> CLOSE``, with the reason unless the peer has finished normally.
    * An exception of an iterable: ``-> EXCEPTION``, its class, and its message.
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
    """A client connect handler that prints the input of its connection."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.failed: Reason = "in a callback, the connection is made after the callback returns"

    def connected(self, connection: Any) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason


class TextPrintingHandler(PrintingHandler):
    """A printing handler that prints input as UTF-8 text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def handle_input(self, connection: Any, data: bytes) -> None:
        sys.stdout.write(self._decoder.decode(data))
