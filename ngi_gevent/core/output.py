"""The pending output of a connection: its pieces, their size, and its limits.

This module is pure: callers pass the functions that send to ``flush``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from ngi_gevent.core.checks import as_bytes, as_iterator, close_iterator

if TYPE_CHECKING:
    from ngi_gevent.core.threads import Flag

__all__ = ["HIGH_WATER", "LOW_WATER", "OUTPUT_LIMIT", "Lines", "OutputQueue", "Piece", "unsent_size_of"]

Piece: TypeAlias = "bytes | memoryview"

#: Bytes of pending output that limit answers.  If input is delivered while more than the high-water mark is pending,
#: all output from then on counts as answers.  After as many bytes of answers again, reading stops until no more than
#: the low-water mark is pending.  Without such input, output does not stop reading.  Otherwise two ends that each send
#: a lot at once would wait for each other forever.  The kernel buffers some megabytes in addition, so these marks bound
#: memory without costing throughput.
HIGH_WATER, LOW_WATER = 64 * 1024, 16 * 1024

#: Bytes of pending output above which one more write breaks the connection.  This is enough for any answer that is
#: written in one piece, and a peer that does not read cannot fill the memory.
OUTPUT_LIMIT = 64 * 1024 * 1024

#: Bytes up to which pieces are joined for one system call.  Larger pieces are sent together, without a copy.
JOINED_SIZE = 64 * 1024

#: Pieces that are sent together.
PIECES_AT_ONCE = 16


class Lines:
    """An iterable given to ``writelines``, from which output is pulled.

    An iterable counts for output limits until it is exhausted.  Otherwise a handler that answers everything with
    ``writelines`` could fill the memory.  It counts as ``ITERATOR_SIZE`` bytes, and a list also as the bytes in it.
    """

    __slots__ = ("_iterator", "known")

    #: Bytes that an iterable counts as, in addition to bytes that are known.
    ITERATOR_SIZE = 4096

    def __init__(self, data: Any) -> None:
        self._iterator = as_iterator(data)
        #: Bytes that will be pulled, as far as that is known.
        self.known = sum(map(_size, data)) if isinstance(data, (list, tuple)) else 0

    @property
    def size(self) -> int:
        """The bytes that it counts as."""
        return self.ITERATOR_SIZE + self.known

    def note_pulled(self, size: int) -> int:
        """Note that *size* bytes were pulled.  Return how many of these were counted before."""
        size = min(size, self.known)
        self.known -= size
        return size

    def pull(self) -> bytes | None:
        """Return the next bytes; None at the end.

        :raises TypeError: the iterable yields something that is not bytes.
        :raises Exception: the iterable raised it.
        """
        item = next(self._iterator, self)
        return None if item is self else as_bytes(item)

    def close(self) -> None:
        """Close the iterator, if it can be closed: nothing more is pulled from it.  May block.

        :raises Exception: the iterator raised it.
        """
        close_iterator(self._iterator)


def _size(data: object) -> int:
    """Return how many bytes *data* has; 0 if it cannot be written."""
    if isinstance(data, memoryview):
        return data.nbytes
    return len(data) if isinstance(data, (bytes, bytearray)) else 0


def unsent_size_of(items: Iterable[Any]) -> int | None:
    """Return how many bytes of output the peers of all *items* have not taken; None if no connection is left."""
    sizes = [size for item in items if (size := item.unsent_size()) is not None]
    return sum(sizes) if sizes else None


class OutputQueue:
    """The pending output of one connection."""

    __slots__ = (
        "drains",
        "is_dropped",
        "is_pausing",
        "is_watched",
        "iterables",
        "limit",
        "pause_threshold",
        "pieces",
        "room",
        "size",
    )

    def __init__(self, limit: int = OUTPUT_LIMIT, room: int = 0) -> None:
        #: Bytes of pending output above which one more write is too much.
        self.limit = limit
        #: Pieces to send next, in order.  Output behind an iterable is counted here, and waits elsewhere.
        self.pieces: list[Piece] = []
        #: Bytes of pending output, iterables included.
        self.size = 0
        #: Bytes of ``size`` that are not pending, because a kernel would hold them for a peer that does not read.
        self.room = room
        #: The number of iterables that are not exhausted.
        self.iterables = 0
        #: Whether output was dropped that the application had written.
        self.is_dropped = False
        #: Whether something depends on how much is pending: a pause, a caller that waits, more output, or the end.
        self.is_watched = False
        #: Flags of callers that wait until less than a number of bytes is pending.
        self.drains: tuple[tuple[Flag, int], ...] = ()
        #: Bytes of pending output above which input is not delivered; None as long as answers are not limited.
        self.pause_threshold: int | None = None
        #: Whether input waits until the peer takes output.
        self.is_pausing = False

    def append(self, data: bytes) -> None:
        """Add *data*, and count it."""
        size = len(data)
        self.size += size  # no call in between, because a signal handler that writes can run in any call
        self.pieces.append(data)

    def add_lines(self, lines: Lines) -> None:
        """Count *lines*."""
        self.size += lines.size
        self.iterables += 1

    def has_iterables(self) -> bool:
        """Return whether output comes from iterables, or waits behind them."""
        return self.iterables > 0

    def remove_lines(self, lines: Lines) -> None:
        """Do not count *lines* any more: they are exhausted, or have failed."""
        self.size -= lines.size
        self.iterables -= 1

    def drop(self) -> None:
        """Drop all pending output."""
        self.is_dropped = self.is_dropped or self.size > 0
        del self.pieces[:]  # no call in between, because a signal handler that writes can run in any call
        self.size = self.iterables = 0
        self.wake_drains()

    # Waiting.

    @property
    def pending(self) -> int:
        """Bytes that wait for the peer.  Later output of iterables does not count."""
        return max(0, self.size - self.iterables * Lines.ITERATOR_SIZE - self.room)

    def is_below(self, below: int) -> bool:
        """Return whether less than *below* bytes are pending; for 1, also whether all iterables are exhausted."""
        return self.pending < below and (below > 1 or not self.iterables)

    def add_drain(self, flag: Flag, below: int) -> None:
        """Set *flag* once less than *below* bytes are pending, or output was dropped."""
        self.drains = (*self.drains, (flag, below))
        self.is_watched = True
        if self.is_dropped or self.is_below(below):
            flag.set()

    def remove_drain(self, flag: Flag) -> None:
        """Forget *flag*."""
        self.drains = tuple(drain for drain in self.drains if drain[0] is not flag)

    def wake_drains(self) -> None:
        """Set the flags whose condition is met."""
        for flag, below in self.drains:
            if self.is_dropped or self.is_below(below):
                flag.set()

    def leave_to_parent(self) -> None:
        """Drop all pending output in a forked child, without waking callers of ``drain``."""
        del self.pieces[:]
        self.size, self.is_dropped, self.drains = 0, True, ()

    def flush(self, send: Callable[[Piece], int], send_several: Callable[[list[Piece]], int]) -> None:
        """Send as much as the kernel takes.  Never blocks.

        :param send: sends one piece, and returns how many bytes were taken, as ``send`` of a non-blocking socket.
        :param send_several: the same for several pieces, as ``sendmsg``.
        :raises OSError: *send* or *send_several* raised it, and it is not a ``BlockingIOError``.
        """
        pieces = self.pieces
        try:
            while pieces:
                self._join_small_pieces()
                sending = pieces[:PIECES_AT_ONCE]
                sent = send(sending[0]) if len(sending) == 1 else send_several(sending)
                if not self.remove(sent, sending):
                    break
        except BlockingIOError:
            pass

    def remove(self, sent: int, sending: list[Piece]) -> bool:
        """Remove the *sent* bytes from the first pieces, *sending*.  Return whether all of *sending* was sent."""
        pieces = self.pieces
        self.size -= sent
        for piece in sending:
            if sent < len(piece):
                pieces[0] = memoryview(piece)[sent:]
                return False
            sent -= len(piece)
            del pieces[0]
        return True

    def _join_small_pieces(self) -> None:
        """Join small pieces at the beginning of the queue."""
        pieces = self.pieces
        size, count = len(pieces[0]), 1
        while count < len(pieces) and size + len(pieces[count]) <= JOINED_SIZE:
            size += len(pieces[count])
            count += 1
        if count > 1:
            pieces[:count] = [b"".join(pieces[:count])]

    # Back-pressure.

    def is_over_limit(self) -> bool:
        """Return whether one more write is too much."""
        return self.size > self.limit

    def limit_answers(self, more: int = 0) -> None:
        """Limit answers from now on, because input is delivered while much output is pending.

        :param more: bytes of output that are pending elsewhere.
        """
        if self.pause_threshold is None:
            self.pause_threshold = self.size + more + HIGH_WATER
            self.is_watched = True

    def is_full(self, more: int = 0) -> bool:
        """Return whether input must wait until the peer takes output.

        Call this only before a delivery of input, because it begins to limit answers if much output is pending.

        :param more: bytes of output that are pending elsewhere.
        """
        waiting = self.size + more
        if waiting <= HIGH_WATER:
            return False
        self.limit_answers(more)
        return self.exceeds_threshold(more)

    def exceeds_threshold(self, more: int = 0) -> bool:
        """Return whether the answers to input have reached their limit."""
        return self.pause_threshold is not None and self.size + more > self.pause_threshold

    def is_low(self) -> bool:
        """Return whether so little is pending that input is delivered without limits again."""
        return self.size <= LOW_WATER

    def end_pause(self) -> bool:
        """Stop limiting answers.  Return whether input was waiting."""
        was_pausing = self.is_pausing
        self.pause_threshold = None
        self.is_pausing = False
        return was_pausing
