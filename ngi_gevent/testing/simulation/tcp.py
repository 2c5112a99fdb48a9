"""The ends of TCP connections: the behavior of the two hosts' kernels.

Data that has left is in flight, and arrives in order.  Each item in flight has an event that delivers the first item,
so the order of these events does not matter.  If the way is cut, or a host has no power, the event is held.

The sender stores output until the peer's kernel has acknowledged it.  It sends only as much as the peer's buffer can
hold.  An acknowledgement costs an event only if the sender waits for it.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from functools import partial
from typing import Any

from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import Site
from ngi_gevent.testing.simulation.streams import RECEIVE_BUFFER, SEND_BUFFER, StreamEnd

__all__ = ["TCPEnd"]

#: The chance that a piece is split on its way, so that its parts arrive at different times.
CUT = 0.1

#: The kinds of items in flight other than data.
END, RESET, ACCEPTED, CONFIRMED = "end", "reset", "accepted", "confirmed"

#: The first bytes of the records of a TLS handshake.
TLS = b"\x16\x03"


class TCPEnd(StreamEnd):
    """One end of a connection over TCP."""

    __slots__ = (
        "_acks",
        "_flight",
        "_flight_size",
        "_got_end",
        "_has_reset",
        "_is_opening",
        "_is_tls",
        "_queued",
        "_refuses",
        "_unsent",
        "_way",
    )

    def __init__(self, world: Any, site: Site, name: Any, target: Any) -> None:
        super().__init__(world, site, name, target)
        self._way: Any = None
        self._queued = 0  # bytes that the peer's kernel has not acknowledged; the end counts as one
        self._acks: deque[tuple[float, int]] = deque()  # when acknowledgements arrive, and for how many bytes
        self._unsent: deque[bytes | str] = deque()  # output that has not left
        self._flight: deque[tuple[bytes | str, int]] = deque()
        self._flight_size = 0  # bytes of data in flight
        self._is_opening = False  # whether the peer is about to be notified that there is room again
        self._refuses = False  # whether data that arrives is answered with a reset
        self._has_reset = False  # whether a reset has left
        self._got_end = False  # whether the end of the peer's output has arrived
        self._is_tls = False  # from the first record of a handshake on, which can follow plaintext

    # Methods that the application calls, through its socket.

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        if self.error or self.has_ended or not self.is_established:
            raise self._no_output()
        size = len(data)
        if self._acks:
            self._take_acks()
        room = SEND_BUFFER - self._queued
        if size > room:
            self._be_full()
            if room <= 0:
                raise error(errno.EAGAIN)
            data, size = data[:room], room
        if size:
            self._queued += size
            self.sent += size
            if self._unsent or size > RECEIVE_BUFFER - self.peer.incoming_size - self._flight_size:
                self._unsent.append(bytes(data))
                self._send_unsent()
            else:
                self._launch(bytes(data), size)
        return size

    def shutdown(self, how: int) -> None:
        if self.is_over() or not self.is_established:
            raise error(errno.ENOTCONN)
        if how != socket.SHUT_WR:
            self.has_no_input = True
        if how != socket.SHUT_RD:
            self._end_output()
        self._refuses = self.has_ended and self.has_no_input
        self.changed()

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._world.trace.note("close", self.site.name, self.label)
        if self.is_over() or not self.is_established:
            self.is_gone = True
            self._release()
        elif self._incoming or self.resets:
            self.abort()
        else:
            self._end_output()
            self._release_if_over()
        self._refuses = self.has_no_input = True
        self._drop_all()

    def _end_output(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._queued += 1
            self._unsent.append(END)
            self._send_unsent()

    def _no_input(self) -> bytes:
        return b"" if self._got_end and self.is_open else super()._no_input()

    def _taken(self, size: int) -> None:
        if self.peer._unsent and not self._is_opening and 4 * self.incoming_size <= 3 * RECEIVE_BUFFER:
            self._is_opening = True
            if self._way.is_cut:
                self._way.hold(self._open)
            else:
                self._world.loop.after(self._way.link.latency, self._open)

    def _open(self) -> None:
        """Let the peer send as much as there is room for."""
        self._is_opening = False
        if self.peer is not None:
            self.peer._send_unsent()

    # Questions.

    def queued(self) -> int:
        self._take_acks()
        return self._queued

    def is_over(self) -> bool:
        return self.is_gone or (self._got_end and self.has_ended and not self.queued())

    # Departure.

    def join(self, peer: TCPEnd, way: Any, label: str) -> None:
        """Send to *peer* from now on, over *way*."""
        self.peer = peer
        self._way = way
        self.label = label

    def accept(self) -> None:
        """Answer the connection attempt of the peer."""
        self._signal(ACCEPTED)

    def abort(self) -> None:
        self._forget()
        self._reset_peer()

    def vanish(self) -> None:
        """Drop the connection without sending anything: the host has lost its power."""
        self._forget()
        self._drop_all()
        self.is_open = False

    def _forget(self) -> None:
        self._unsent.clear()
        self.is_gone = self.has_ended = self.has_no_input = self._refuses = True
        self._release()

    def _reset_peer(self) -> None:
        if not self._has_reset and self.peer is not None:
            self._has_reset = True
            self._signal(RESET)

    def _send_unsent(self) -> None:
        """Send as much as the peer's buffer has room for, and then the end of output."""
        unsent = self._unsent
        while unsent:
            item = unsent[0]
            if type(item) is str:
                unsent.popleft()
                self._signal(item)
                continue
            window = RECEIVE_BUFFER - self.peer.incoming_size - self._flight_size
            if window <= 0:
                return
            data: Any = unsent.popleft()
            if len(data) > window:
                unsent.appendleft(data[window:])
                data = data[:window]
            self._launch(data, len(data))
        if not self.is_open:
            self._release_if_over()

    def _launch(self, data: bytes, size: int) -> None:
        """Send data, in one part or two."""
        self._flight_size += size
        draws = self._world.draws
        if size > 1 and draws.chance(CUT):
            first = 1 + draws.pick(size - 1)
            self._leave(data[:first], first)
            data, size = data[first:], size - first
        self._leave(data, size)

    def _leave(self, data: bytes, size: int) -> None:
        trace = self._world.trace
        piece = trace.new_piece()
        if not self._is_tls:
            self._is_tls = data.startswith(TLS)
        trace.note("send", self.site.name, self.label if self._is_tls else f"{self.label} {size} bytes", piece)
        self._flight.append((data, piece))
        way = self._way
        if way.is_cut:
            self._hold(piece)
        else:
            self._world.loop.after(way.delay(size), self._land)

    def _signal(self, what: str) -> None:
        """Send an item that is not data."""
        trace = self._world.trace
        piece = trace.new_piece()
        if what is END or what is RESET:
            trace.note(what, self.site.name, self.label, piece)
        self._flight.append((what, piece))
        if self._way.is_cut:
            self._hold(piece)
        else:
            self._again()

    def _again(self) -> None:
        self._world.loop.after(self._way.delay(0), self._land)

    def _hold(self, piece: int) -> None:
        self._world.trace.note("hold", self.site.name, self.label, piece)
        self._way.hold(self._released)

    def _released(self) -> None:
        self._world.trace.note("release", self.site.name, self.label)
        self._again()

    # Arrival.

    def _land(self) -> None:
        """Deliver the first item in flight to the peer."""
        peer = self.peer
        if self._way.is_cut:
            self._hold(self._flight[0][1])
            return
        site = peer.site
        if not site.is_up:
            site.missed.append(self._again)
            return
        item, piece = self._flight.popleft()
        trace = self._world.trace
        if type(item) is not bytes:
            self._signal_arrives(item, peer, piece)
            return
        size = len(item)
        self._flight_size -= size
        text = self.label if self._is_tls else f"{self.label} {size} bytes"
        if peer._refuses:
            trace.note("lost", site.name, text, piece)
            peer._refuse()
            return
        trace.note("receive", site.name, text, piece)
        peer._incoming.append(item)
        peer.incoming_size += size
        self._acknowledge(peer._way, size)
        peer.changed()

    def _signal_arrives(self, what: Any, peer: TCPEnd, piece: int) -> None:
        if what is RESET:
            if not peer.is_over():
                self._world.trace.note("reset", peer.site.name, f"{self.label} arrives", piece)
                peer._be_reset()
        elif peer.is_gone:
            peer._reset_peer()
        elif what is END:
            self._world.trace.note("receive", peer.site.name, f"{self.label} end", piece)
            peer._got_end = peer.has_no_input = True
            self._acknowledge(peer._way, 1)
            if peer.is_open:
                peer.changed()
            else:
                peer._release_if_over()
        else:
            peer.is_established = True
            if what is ACCEPTED:
                peer._signal(CONFIRMED)
            peer.changed()

    def _be_reset(self) -> None:
        if self.is_open:
            self.error = errno.EPIPE if self._got_end and not self.has_ended else errno.ECONNRESET
        self._forget()
        self.changed()

    def _refuse(self) -> None:
        """Reset the connection, since data has arrived that cannot be received any more."""
        if not self.is_gone:
            self._be_reset()
        self._reset_peer()

    # Acknowledgements.

    def _acknowledge(self, back: Any, size: int) -> None:
        """Acknowledge *size* bytes of output, over *back*."""
        if back.is_cut:
            back.hold(partial(self._be_acknowledged, size))
        elif self.is_full:
            self._world.loop.after(back.link.latency, self._be_acknowledged, size)
        else:
            self._acks.append((self._world.loop.now() + back.link.latency, size))

    def _take_acks(self) -> None:
        """Process the acknowledgements that have arrived."""
        acks, now = self._acks, self._world.loop.now()
        while acks and acks[0][0] <= now:
            self._queued -= acks.popleft()[1]

    def _be_full(self) -> None:
        """Wait for acknowledgements, including those in flight."""
        self.is_full = True
        if self._acks:
            last = self._acks[-1][0]
            self._world.loop.after(last - self._world.loop.now(), self._be_acknowledged, 0)

    def _be_acknowledged(self, size: int) -> None:
        self._queued -= size
        self._take_acks()
        if self.is_full and 3 * self._queued <= 2 * SEND_BUFFER:
            self.is_full = False
            self.changed()

    # The end.

    def _release_if_over(self) -> None:
        if self._got_end and self.has_ended and not self._unsent:
            self._release()

    def _release(self) -> None:
        self.site.forget(self)
        peer = self.peer
        if peer is None or self.is_open or peer.is_open or self._flight or peer._flight or peer in peer.site.ends:
            return
        self.peer = peer.peer = None  # to free both at once, since a simulation rarely collects garbage
