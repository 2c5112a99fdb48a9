"""Streams: received input, the common base of connections, and the connections of Unix sockets."""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from ngi_gevent.testing.simulation.errors import HostCrashed
from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import Site

__all__ = ["RECEIVE_BUFFER", "SEND_BUFFER", "StreamEnd", "UnixEnd"]

#: Bytes of output that a kernel accepts for a connection, and bytes of input that it stores.
SEND_BUFFER = RECEIVE_BUFFER = 128 * 1024

#: The event that the peer has finished sending, as on Linux.
FINISHED = 0x2000

MSG_PEEK = int(socket.MSG_PEEK)


class StreamEnd:
    """One end of a connection, in the kernel of its host.

    :ivar name: the address of this end.
    :ivar target: the address that it connects to, or, on a server, from which it was connected, over TCP.
    :ivar peer: the other end; None before the two are connected, and once both are closed.
    :ivar label: both ends, for the trace.
    :ivar error: the error number that the next call raises, or 0.
    :ivar has_ended: whether no more data can be sent.
    :ivar has_no_input: whether no more data will arrive.  Input that has arrived can still be received.
    :ivar is_established: whether it has been connected.
    :ivar is_gone: whether the kernel has forgotten it: there was a reset, or a Unix socket was closed.
    :ivar is_open: whether the application has not closed the socket.
    :ivar resets: whether ``close`` resets the connection.
    :ivar changed: called when there is an event for the application.
    """

    __slots__ = (
        "_generation",
        "_incoming",
        "_world",
        "changed",
        "error",
        "has_ended",
        "has_no_input",
        "incoming_size",
        "is_established",
        "is_full",
        "is_gone",
        "is_open",
        "label",
        "name",
        "peer",
        "received",
        "resets",
        "sent",
        "site",
        "target",
    )

    def __init__(self, world: Any, site: Site, name: Any, target: Any = None) -> None:
        self._world = world
        self._generation = site.generation
        self.site = site
        self.name = name
        self.target = target
        self.peer: Any = None
        self.label = ""
        self._incoming: deque[bytes | memoryview] = deque()
        self.incoming_size = 0
        self.received = self.sent = 0  # the number of bytes
        self.error = 0
        self.is_established = self.is_gone = self.has_ended = self.has_no_input = False
        self.is_full = False  # whether the kernel has accepted less than it was given
        self.is_open = True
        self.resets = False
        self.changed: Callable[[], object] = bool
        site.ends[self] = None

    # Methods that the application calls, through its socket.

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Accept output, as much as there is room for.

        :raises BlockingIOError: there is no room.
        :raises OSError: the connection was reset, or its output has ended.
        """
        raise NotImplementedError

    def sendmsg(self, pieces: Any, *_: Any) -> int:
        """Accept several pieces of output.  Raises the same as ``send``."""
        return self.send(b"".join(pieces))

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return input, at most so many bytes; ``b''`` at its end.

        :raises BlockingIOError: there is no input now.
        :raises OSError: the connection was reset.
        """
        incoming = self._incoming
        if not incoming:
            return self._no_input()
        if flags & MSG_PEEK:
            return b"".join(incoming)[:size]
        data = incoming.popleft()
        if incoming or type(data) is not bytes or len(data) > size:
            data = self._gather(data, size)
        self.incoming_size -= len(data)
        self.received += len(data)
        self._taken(len(data))
        return data

    def _gather(self, data: bytes | memoryview, size: int) -> bytes:
        incoming, pieces = self._incoming, [data]
        left = size - len(data)
        while left > 0 and incoming:
            pieces.append(incoming.popleft())
            left -= len(pieces[-1])
        if left < 0:
            last = memoryview(pieces.pop())
            pieces.append(last[:left])
            incoming.appendleft(last[left:])
        return b"".join(pieces)

    def _no_input(self) -> bytes:
        """Return the end of input, or raise."""
        if not self.is_open:
            raise self._closed_error()
        if self.error:
            raise self.take_error()
        if self.has_no_input:
            return b""
        raise error(errno.EAGAIN)

    def _no_output(self) -> OSError:
        """Return the error that explains why nothing can be sent."""
        return self.take_error() if self.is_open else self._closed_error()

    def _closed_error(self) -> OSError:
        if self._generation != self.site.generation:
            return HostCrashed(f"host {self.site.name!r} has crashed since this connection was created")
        return error(errno.EBADF)

    def shutdown(self, how: int) -> None:
        """End output, input, or both.

        :raises OSError: the connection is over.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Deliver the pending output.  If input was not received, reset the connection for the peer."""
        raise NotImplementedError

    def abort(self) -> None:
        """Reset the connection for the peer, at once."""
        raise NotImplementedError

    def _taken(self, size: int) -> None:
        """Count input that the application has received."""
        raise NotImplementedError

    def take_error(self) -> OSError:
        """Return the error, and clear it."""
        code, self.error = self.error, 0
        return error(code or errno.EPIPE)

    # Questions.

    def queued(self) -> int:
        """Return how many bytes of output the peer has not received."""
        raise NotImplementedError

    def is_over(self) -> bool:
        """Return whether the kernel has forgotten the connection."""
        return self.is_gone

    def poll(self) -> int:
        """Return the pending events, as ``select.poll`` does."""
        events = select.POLLERR if self.error else 0
        if self._incoming:
            events |= select.POLLIN
        if self.has_no_input:
            events |= select.POLLIN | FINISHED
            if self.has_ended:
                events |= select.POLLHUP
        return events

    def readiness(self) -> int:
        """Return what the socket is ready for: 1 to read, 2 to write, 3 for both."""
        if self.error or (self.has_no_input and self.has_ended):
            return 3
        readable = 1 if self._incoming or self.has_no_input else 0
        return readable if self.is_full or not self.is_established else readable | 2

    def _drop_all(self) -> None:
        """Drop input and output."""
        self._incoming.clear()
        self.incoming_size = 0
        self.changed = bool


class UnixEnd(StreamEnd):
    """One end of a connection over a Unix socket.  Data arrives at the moment when it is sent."""

    __slots__ = ()

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        peer = self.peer
        if self.has_ended:
            raise error(errno.EPIPE) if self.is_open else self._closed_error()
        size = len(data)
        room = SEND_BUFFER - peer.incoming_size
        if size > room:
            self.is_full = True
            if room <= 0:
                raise error(errno.EAGAIN)
            data, size = data[:room], room
        if size:
            trace = self._world.trace
            piece = trace.new_piece()
            trace.note("send", self.site.name, f"{self.label} {size} bytes", piece)
            trace.note("receive", self.site.name, f"{self.label} {size} bytes", piece)
            peer._incoming.append(bytes(data))
            peer.incoming_size += size
            peer.changed()
        return size

    def shutdown(self, how: int) -> None:
        peer = self.peer
        if how != socket.SHUT_RD and not self.has_ended:
            self._world.trace.note("end", self.site.name, self.label)
            self.has_ended = peer.has_no_input = True
        if how != socket.SHUT_WR:
            self.has_no_input = peer.has_ended = True
        peer.changed()
        self.changed()

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        peer = self.peer
        if self._incoming and peer.is_open:
            peer.error = errno.ECONNRESET
        self._drop_all()
        self.is_gone = self.has_ended = self.has_no_input = True
        peer.has_ended = peer.has_no_input = True
        self._world.trace.note("close", self.site.name, self.label)
        self.site.forget(self)
        peer.changed()
        if not peer.is_open:
            self.peer = peer.peer = None  # to free both at once, since a simulation rarely collects garbage

    def abort(self) -> None:
        self.peer.error = errno.ECONNRESET
        self.close()

    def vanish(self) -> None:
        """Drop the connection, since the host has crashed."""
        self._drop_all()
        self.is_open = False
        self.is_gone = self.has_ended = self.has_no_input = True

    def queued(self) -> int:
        return 0 if self.peer is None else self.peer.incoming_size

    def _taken(self, size: int) -> None:
        peer = self.peer
        if peer.is_full and 4 * self.incoming_size <= SEND_BUFFER:
            peer.is_full = False
            peer.changed()
