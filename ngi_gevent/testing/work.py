"""A check that the work of a server does not grow with the square of its input.

Work is the lines of Python that run outside this package, and the bytes of memory that each line allocates.  So the
speed and load of the machine do not matter.  The check does not detect work in C that allocates no memory, such as
searching a ``bytearray`` from its beginning again and again.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING, Any

import gevent
import greenlet

from ngi_gevent.core.checks import check_server
from ngi_gevent.core.threads import get_hub_if_exists
from ngi_gevent.testing.conversation import Conversation
from ngi_gevent.testing.pasting import name_of, pasted

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IServer

__all__ = ["check_work"]

#: The number of bytes over which a median is computed, and how often in a row it must rise by half a unit per byte.
WINDOW = 64
RISES = 4

#: The bytes up to which a short conversation is repeated, and how often a longer conversation is repeated.
REPEATED, TIMES = 4 * 1024, 8

#: The limit for the cost of twice as many bytes.  If the work is exactly linear, that cost is 2.
RATIO = 2.5

#: The files of this package.
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def check_work(server: IServer, conversation: bytes) -> None:
    """Check that the work of *server* does not grow with the square of its input.

    Two mistakes have that effect:

    * A buffer is copied or searched for each piece.  Sending *conversation* a byte at a time detects this, if a record
      is longer than 320 bytes.
    * A buffer is copied for each record in it.  Sending the conversation many times, in one piece, detects this.

    :raises AssertionError: the work grows with the square; the message has a test to paste.
    """
    __tracebackhide__ = True
    check_server(server)
    if not isinstance(conversation, (bytes, bytearray, memoryview)):
        raise TypeError(f"conversation must be bytes; got {conversation!r:.100}")
    conversation = bytes(conversation)
    if not conversation:
        raise ValueError("conversation must not be empty; got b''; pass the bytes that a client sends")
    problem = _check_bytes(server, conversation) or _check_repeated(server, conversation)
    if problem:
        test = f"    check_work({name_of(server)}, {conversation!r})"
        raise AssertionError(f"{problem}\n\nTo see it again:\n\n{pasted('check_work', server, test)}")


def _check_bytes(server: IServer, conversation: bytes) -> str:
    """Return the problem with a conversation that is sent a byte at a time, or an empty string."""
    work = _work(server, [conversation[at : at + 1] for at in range(len(conversation))])
    windows = [median(work[at : at + WINDOW]) for at in range(0, len(work) - WINDOW + 1, WINDOW)]
    for first in range(len(windows) - RISES):
        rise = windows[first : first + RISES + 1]
        if all(after - before >= WINDOW / 2 for before, after in pairwise(rise)):
            return (
                "each byte that comes costs more than the one before it, as if all that has come is copied or searched "
                f"through again: coming a byte at a time, those around byte {first * WINDOW} take {rise[0]:,.0f} units "
                f"of work each, and those around byte {(first + RISES) * WINDOW} take {rise[-1]:,.0f}"
            )
    return ""


def _check_repeated(server: IServer, conversation: bytes) -> str:
    """Return the problem with a conversation that is repeated, or an empty string."""
    once = conversation * max(REPEATED // len(conversation), TIMES)
    try:
        (work,), (twice,) = _work(server, [once]), _work(server, [once * 2])
    except Exception:
        return ""  # the conversation cannot be repeated on one connection
    if twice > RATIO * work:
        return (
            "each record costs more the more has come with it, as if the rest is copied for each: coming in one piece, "
            f"{len(once):,} bytes of the same again and again take {work:,} units of work, and twice as many bytes "
            f"take {twice:,}"
        )
    return ""


def _work(server: IServer, pieces: Iterable[bytes]) -> list[int]:
    """Return the units of work that each of *pieces* takes."""
    work = []
    with _Meter() as meter:
        conversation = Conversation(server)  # after tracing has begun, which applies to later calls only
        for piece in pieces:
            before = meter.work
            conversation.send(piece)
            work.append(meter.work - before)
    conversation.end()
    return work


class _Meter:
    """A tracer that counts lines of Python, and the bytes that each line allocates, even if it frees them at once.

    Before Python 3.12, a trace function applies to one greenlet, so it is set again in each greenlet that runs.
    """

    def __init__(self) -> None:
        self.work = 0
        self._memory = 0
        self._started = False
        self._tracer: Any = None
        self._switched: Any = None

    def __enter__(self) -> _Meter:
        self._started = not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start()
        self._memory = tracemalloc.get_traced_memory()[0]
        self._tracer = sys.gettrace()  # the trace function of a debugger or a coverage tool
        self._switched = greenlet.settrace(lambda *_: sys.settrace(self._enter))
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        greenlet.settrace(lambda *_: sys.settrace(self._tracer))
        sys.settrace(self._tracer)
        if get_hub_if_exists() is not None:
            gevent.idle()  # stops tracing in the hub, and in the greenlets that it runs
        greenlet.settrace(self._switched)
        if self._started:
            tracemalloc.stop()

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        # Lines of this package are not work of the server.  Their memory counts for the next line of the server.
        return None if frame.f_code.co_filename.startswith(_OWN) else self._line

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        memory, peak = tracemalloc.get_traced_memory()
        self.work += 1 + max(0, peak - self._memory)
        self._memory = memory
        tracemalloc.reset_peak()
        return self._line
