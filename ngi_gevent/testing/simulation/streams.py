"""Streams: what the kernels at both ends of a connection do, without a socket.

Each end has output that has not left, because the peer's buffer is full; pieces in flight; and input that the
application has not received.  What is in flight arrives in order.  At a way that is cut, it is held.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any

from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import Site

__all__ = ["RECEIVE_BUFFER", "SEND_BUFFER", "StreamEnd", "UnixStreamEnd", "pair"]

#: Bytes of output that a kernel takes for a connection, and of input that it keeps.
SEND_BUFFER = RECEIVE_BUFFER = 128 * 1024

#: The chance that a piece is cut on its way, so that its parts arrive at different times.
CUT = 0.1

#: What is in flight.
DATA, END, RESET, ACCEPTED = "data", "end", "reset", "accepted"


class StreamEnd:
    """One end of a connection over TCP.

    :ivar name: the address of this end.
    :ivar error: the number of an error that the next call raises, or 0.
    :ivar is_open: whether the application has the socket.
    :ivar is_gone: whether this end has been reset, or has reset the other.
    :ivar has_ended: whether the application has ended its output.
    :ivar peer_has_ended: whether the end of input has arrived.
    :ivar linger: whether ``close`` may deliver output; False if it resets the connection.
    :ivar changed: called when there is something to notice for the application.
    """

    __slots__ = (
        "_end_has_left",
        "_flight",
        "_flight_size",
        "_generation",
        "_incoming",
        "_label",
        "_unsent",
        "_unsent_size",
        "_way",
        "_world",
        "changed",
        "error",
        "has_ended",
        "incoming_size",
        "is_established",
        "is_gone",
        "is_open",
        "linger",
        "name",
        "peer",
        "peer_has_ended",
        "site",
    )

    peer: StreamEnd

    def __init__(self, world: Any, site: Site, name: Any) -> None:
        self._world = world
        self._generation = site.generation
        self._way: Any = None
        self._label = ""
        self._incoming: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._flight: deque[tuple[str, bytes, int]] = deque()
        self._unsent_size = self._flight_size = self.incoming_size = 0
        self._end_has_left = False
        self.site = site
        self.name = name
        self.error = 0
        self.is_established = self.is_gone = self.has_ended = self.peer_has_ended = False
        self.is_open = self.linger = True
        self.changed: Callable[[], object] = bool
        site.ends[self] = None

    # What the application calls, through its socket.

    def send(self, data: bytes | memoryview) -> int:
        """Take output, as much as there is room for.

        :raises BlockingIOError: there is none.
        :raises OSError: the connection has broken, or the application has ended its output.
        """
        if self.error:
            raise self.take_error()
        if self.has_ended or self.is_gone:
            raise error(errno.EPIPE)
        size = len(data)
        room = self.room()
        if size > room:
            if room <= 0:
                raise error(errno.EAGAIN)
            data, size = data[:room], room
        if size:
            self._unsent.append(bytes(data))
            self._unsent_size += size
            self._transmit()
        return size

    def recv(self, size: int, *, peek: bool = False) -> bytes:
        """Return input, at most so many bytes; ``b''`` at the end of it.

        :raises BlockingIOError: there is none now.
        :raises OSError: the connection has broken.
        """
        incoming = self._incoming
        if not incoming:
            if self.error:
                raise self.take_error()
            if self.peer_has_ended or self.is_gone or not size:
                return b""
            raise error(errno.EAGAIN)
        if peek:
            return b"".join(incoming)[:size]
        data = incoming.popleft()
        if len(data) < size and incoming:
            pieces = [data]
            left = size - len(data)
            while incoming and left > 0:
                pieces.append(incoming.popleft())
                left -= len(pieces[-1])
            data = b"".join(pieces)
        if len(data) > size:
            incoming.appendleft(data[size:])
            data = data[:size]
        self.incoming_size -= len(data)
        self._taken()
        return data

    def end_output(self) -> None:
        """End the output for the peer, behind everything that was sent."""
        if not self.has_ended:
            self.has_ended = True
            if not self.is_gone:
                self._transmit()

    def end_input(self) -> None:
        """Let the application receive nothing more."""
        self.peer_has_ended = True

    def close(self) -> None:
        """Let the kernel deliver the rest, or reset the connection: if it must not linger, or drops input."""
        if not self.is_open:
            return
        self.is_open = False
        self.changed = bool
        if self.is_gone:
            self._release()
        elif not self.linger or self._incoming:
            self.reset()
        else:
            self.end_output()
            if self.peer_has_ended:
                self._release()

    def take_error(self) -> OSError:
        """Return the error, once."""
        code, self.error = self.error, 0
        return error(code)

    # Questions.

    def room(self) -> int:
        """Return how many bytes of output the kernel would take."""
        return SEND_BUFFER - self._unsent_size - self._flight_size

    def queued(self) -> int:
        """Return how many bytes of output have not arrived at the peer's kernel."""
        return self._unsent_size + self._flight_size

    def has_input(self) -> bool:
        """Return whether ``recv`` would not block."""
        return bool(self._incoming or self.peer_has_ended or self.error or self.is_gone)

    def is_finished(self) -> bool:
        """Return whether both directions have ended, or the connection has broken."""
        return bool(self.error) or self.is_gone or (self.peer_has_ended and self.has_ended)

    def readiness(self) -> int:
        """Return what its socket is ready for."""
        if self.is_finished():
            return 3
        readable = 1 if self._incoming or self.peer_has_ended else 0
        return readable | (2 if self.is_established and 3 * self.room() >= SEND_BUFFER else 0)

    # What happens to it.

    def meet(self, peer: StreamEnd, way: Any, label: str) -> None:
        """Send to *peer* from now on, over *way*."""
        self.peer = peer
        self._way = way
        self._label = label

    def accept(self) -> None:
        """Tell the peer that the connection is established."""
        self.is_established = True
        self._launch(ACCEPTED, b"")

    def reset(self) -> None:
        """Drop everything, and reset the peer."""
        self._unsent.clear()
        self._unsent_size = 0
        self.is_gone = True
        self._launch(RESET, b"")
        self._release()

    def vanish(self) -> None:
        """Drop everything, and send nothing: the host has lost its power."""
        for some in self._unsent, self._incoming:
            some.clear()
        self._unsent_size = self.incoming_size = 0
        self.is_gone = True
        self.is_open = False
        self.changed = bool

    def _taken(self) -> None:
        """Let the peer send more, since the application has taken input."""
        if self.peer._unsent:
            self.peer._transmit()

    def _transmit(self) -> None:
        """Send what the peer's buffer has room for, and the end behind it."""
        unsent = self._unsent
        while unsent:
            window = RECEIVE_BUFFER - self.peer.incoming_size - self._flight_size
            if window <= 0:
                return
            data = unsent.popleft()
            size = len(data)
            most = size
            if size > 1 and self._world.draws.chance(CUT):
                most = 1 + self._world.draws.pick(size - 1)
            most = min(most, window)
            if most < size:
                unsent.appendleft(data[most:])
                data = data[:most]
            self._unsent_size -= len(data)
            self._launch(DATA, data)
        if self.has_ended and not self._end_has_left:
            self._end_has_left = True
            self._launch(END, b"")

    def _launch(self, what: str, data: bytes) -> None:
        """Let something leave."""
        trace = self._world.trace
        piece = trace.new_piece()
        self._flight.append((what, data, piece))
        self._flight_size += len(data)
        if what is DATA:
            trace.note("send", self.site.name, f"{self._label} {len(data)} bytes", piece)
        else:
            trace.note(_KINDS[what], self.site.name, self._label, piece)
        self._travel(len(data))

    def _travel(self, size: int) -> None:
        way = self._way
        if way.is_cut:
            self._hold()
        else:
            self._world.loop.after(way.delay(size), self._land)

    def _hold(self) -> None:
        piece = self._flight[0][2] if self._flight else 0
        self._world.trace.note("hold", self.site.name, self._label, piece)
        self._way.hold(lambda: self._travel(0))

    def _land(self) -> None:
        """Let what has left first arrive."""
        if self._way.is_cut:
            self._hold()
            return
        peer = self.peer
        site = peer.site
        if not site.is_up:
            site.missed.append(self._land)
            return
        what, data, piece = self._flight.popleft()
        self._flight_size -= len(data)
        peer._arrive(what, data, piece)
        if what is DATA:
            self.changed()

    def _arrive(self, what: str, data: bytes, piece: int) -> None:
        note = self._world.trace.note
        if what is RESET:
            if not self.is_gone:
                note("reset", self.site.name, f"{self.peer._label} arrives", piece)
                self._be_reset()
        elif self.is_gone or (what is DATA and (not self.is_open or (self.peer_has_ended and self.has_ended))):
            note("lost", self.site.name, self.peer._label, piece)
            if not self.is_gone or self._generation != self.site.generation:
                self._generation = self.site.generation
                self.reset()
        elif what is DATA:
            note("receive", self.site.name, f"{self.peer._label} {len(data)} bytes", piece)
            self._incoming.append(data)
            self.incoming_size += len(data)
            self.changed()
        elif what is END:
            note("receive", self.site.name, f"{self.peer._label} end", piece)
            self.peer_has_ended = True
            if not self.is_open:
                self._release()
            self.changed()
        else:
            note("receive", self.site.name, f"{self.peer._label} accepted", piece)
            self.is_established = True
            self.changed()

    def _be_reset(self) -> None:
        if not self.is_established:
            self.error = errno.ECONNREFUSED
        else:
            self.error = errno.EPIPE if self.peer_has_ended else errno.ECONNRESET
        self._unsent.clear()
        self._unsent_size = 0
        self.is_gone = True
        if not self.is_open:
            self._release()
        self.changed()

    def _release(self) -> None:
        self.site.forget(self)


_KINDS = {END: "end", RESET: "reset", ACCEPTED: "accept"}


class UnixStreamEnd(StreamEnd):
    """One end of a connection over a Unix socket.  Output arrives at once."""

    __slots__ = ()

    def room(self) -> int:
        return SEND_BUFFER - self.peer.incoming_size

    def queued(self) -> int:
        return self.peer.incoming_size

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.changed = bool
            peer = self.peer
            if self._incoming and not peer.is_gone:
                peer.error = errno.ECONNRESET
            self.is_gone = True
            self.has_ended = peer.peer_has_ended = True
            peer.has_ended = True  # nothing can be sent to this end any more
            self._world.trace.note("close", self.site.name, self._label)
            self._release()
            peer.changed()

    def reset(self) -> None:
        self.close()

    def end_input(self) -> None:
        super().end_input()
        self.peer.has_ended = True

    def _taken(self) -> None:
        self.peer.changed()

    def _travel(self, size: int) -> None:
        self._land()


def pair(world: Any, ends: tuple[StreamEnd, StreamEnd], labels: tuple[str, str]) -> None:
    """Connect two ends."""
    one, other = ends
    way = world.way
    one.meet(other, way(one.site, other.site), f"{labels[0]} -> {labels[1]}")
    other.meet(one, way(other.site, one.site), f"{labels[1]} -> {labels[0]}")
