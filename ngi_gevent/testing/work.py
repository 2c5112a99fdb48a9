"""How much work a server has with its input: whether that grows with what came before.

Counted are the lines of Python that are run and the bytes of memory that each of them takes, so that it does not matter
how fast a machine is, or how busy.  What runs in C and takes no memory is not seen: a ``bytearray`` that is searched
from its beginning again and again, for instance.
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

from ngi_gevent.core.listening import check_server
from ngi_gevent.testing.conversation import Conversation
from ngi_gevent.testing.pasting import name_of, pasted

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IServer

__all__ = ["check_work"]

#: Pieces of a byte of which the median is taken, and how often in a row that must rise by half a unit a byte.
WINDOW = 64
RISES = 4

#: Bytes over which a conversation is repeated, and how many times as much twice as much may cost: 2, were it exact.
REPEATED = 16 * 1024
RATIO = 2.5

_OWN = os.path.dirname(__file__) + os.sep


def check_work(server: IServer, conversation: bytes) -> None:
    """Check that the work that *server* has with its input does not grow with the square of it.

    Two mistakes do that.  A buffer that is copied, or looked through, with every piece that comes is found by giving
    *conversation* a byte at a time; that takes a record of more than 320 bytes.  A buffer that is copied with every
    record that is taken from it is found by giving the conversation many times over, in one piece.  Raises
    :class:`AssertionError`, with a test to paste.
    """
    __tracebackhide__ = True
    check_server(server)
    if not isinstance(conversation, (bytes, bytearray, memoryview)):
        raise TypeError(f"work is checked with bytes, all that a client sends; got {conversation!r:.100}")
    conversation = bytes(conversation)
    if not conversation:
        raise ValueError("an empty conversation checks nothing; give what a client sends")
    problem = _of_bytes(server, conversation) or _of_repeated(server, conversation)
    if problem:
        test = f"    check_work({name_of(server)}, {conversation!r})"
        raise AssertionError(f"{problem}\n\nTo see it again:\n\n{pasted('check_work', server, test)}")


def _of_bytes(server: IServer, conversation: bytes) -> str:
    """What is wrong where the conversation comes a byte at a time, or nothing."""
    work = _work(server, [conversation[at : at + 1] for at in range(len(conversation))])
    windows = [median(work[at : at + WINDOW]) for at in range(0, len(work) - WINDOW + 1, WINDOW)]
    for first in range(len(windows) - RISES):
        rise = windows[first : first + RISES + 1]
        if all(after - before >= WINDOW / 2 for before, after in pairwise(rise)):
            return (
                "each byte that comes costs more than the one before it, as if all that has come is copied or looked "
                f"through again: coming a byte at a time, those around byte {first * WINDOW} take {rise[0]:,.0f} units "
                f"of work each, and those around byte {(first + RISES) * WINDOW} take {rise[-1]:,.0f}"
            )
    return ""


def _of_repeated(server: IServer, conversation: bytes) -> str:
    """What is wrong where the conversation comes many times over, or nothing."""
    once = conversation * (REPEATED // len(conversation) + 1)
    try:
        (work,), (twice,) = _work(server, [once]), _work(server, [once * 2])
    except Exception:
        return ""  # it is no conversation that can be had again on the same connection
    if twice > RATIO * work:
        return (
            "each record costs more the more has come with it, as if the rest is copied for each: coming in one piece, "
            f"{len(once):,} bytes of the same again and again take {work:,} units of work, and twice as many bytes "
            f"take {twice:,}"
        )
    return ""


def _work(server: IServer, pieces: Iterable[bytes]) -> list[int]:
    """The units of work that each of *pieces* takes."""
    conversation = Conversation(server)
    work = []
    with _Meter() as meter:
        for piece in pieces:
            before = meter.work
            conversation.send(piece)
            work.append(meter.work - before)
    conversation.end()
    return work


class _Meter:
    """Counts lines of Python, and the bytes of memory that each takes, also if it gives them back at once."""

    def __init__(self) -> None:
        self.work = 0
        self._memory = 0
        self._started = False
        self._tracer: Any = None

    def __enter__(self) -> _Meter:
        self._started = not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start()
        self._memory = tracemalloc.get_traced_memory()[0]
        self._tracer = sys.gettrace()  # that of a debugger, or of who measures coverage
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._tracer)
        if self._started:
            tracemalloc.stop()

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        # Not for what plays the network, which is no work of the server's.
        return None if frame.f_code.co_filename.startswith(_OWN) else self._line

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        memory, peak = tracemalloc.get_traced_memory()
        self.work += 1 + max(0, peak - self._memory)
        self._memory = memory
        tracemalloc.reset_peak()
        return self._line
