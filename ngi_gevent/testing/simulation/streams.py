"""Streams: input that has arrived, and what both kinds of connections have in common; and those of Unix sockets."""

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

#: Bytes of output that a kernel takes for a connection, and of input that it keeps.
SEND_BUFFER = RECEIVE_BUFFER = 128 * 1024

#: The event that the peer has finished sending, as on Linux.
FINISHED = 0x2000

MSG_PEEK = int(socket.MSG_PEEK)


class StreamEnd:
    """One end of a connection, in the kernel of its host.

    :ivar name: the address of this end.
    :ivar target: the address that it connects to, or was connected from, over TCP.
    :ivar peer: the other end; None before the two have met, and once both are closed.
    :ivar label: both ends, for the trace.
    :ivar error: the number of an error that the next call raises, or 0.
    :ivar has_ended: whether nothing can be sent any more.
    :ivar has_no_input: whether nothing more will be received, except for input that has arrived.
    :ivar is_established: whether it has been connected.
    :ivar is_gone: whether the kernel has forgotten it: there was a reset, or the socket of a Unix connection is closed.
    :ivar is_open: whether the application has the socket.
    :ivar resets: whether ``close`` resets the connection.
    :ivar changed: called when there is something to notice for the application.
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
        self.received = self.sent = 0  # bytes
        self.error = 0
        self.is_established = self.is_gone = self.has_ended = self.has_no_input = False
        self.is_full = False  # since the kernel has taken less than it was given
        self.is_open = True
        self.resets = False
        self.changed: Callable[[], object] = bool
        site.ends[self] = None

    # What the application calls, through its socket.

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Take output, as much as there is room for.

        :raises BlockingIOError: there is none.
        :raises OSError: the connection has broken, or its output has ended.
        """
        raise NotImplementedError

    def sendmsg(self, pieces: Any, *_: Any) -> int:
        """Take several pieces of output.  Raises as ``send``."""
        return self.send(b"".join(pieces))

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return input, at most so many bytes; ``b''`` at the end of it.

        :raises BlockingIOError: there is none now.
        :raises OSError: the connection has broken.
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
        """Return why nothing can be sent."""
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
        """Deliver the rest, or break the connection for the peer if input was not received."""
        raise NotImplementedError

    def abort(self) -> None:
        """Break the connection for the peer, at once."""
        raise NotImplementedError

    def _taken(self, size: int) -> None:
        """Note that the application has received input."""
        raise NotImplementedError

    def take_error(self) -> OSError:
        """Return the error, once."""
        code, self.error = self.error, 0
        return error(code or errno.EPIPE)

    # Questions.

    def queued(self) -> int:
        """Return how many bytes of output the peer has not taken."""
        raise NotImplementedError

    def is_over(self) -> bool:
        """Return whether the kernel has forgotten the connection."""
        return self.is_gone

    def poll(self) -> int:
        """Return what has happened, as the events of ``select.poll``."""
        events = select.POLLERR if self.error else 0
        if self._incoming:
            events |= select.POLLIN
        if self.has_no_input:
            events |= select.POLLIN | FINISHED
            if self.has_ended:
                events |= select.POLLHUP
        return events

    def readiness(self) -> int:
        """Return what its socket is ready for."""
        if self.error or (self.has_no_input and self.has_ended):
            return 3
        readable = 1 if self._incoming or self.has_no_input else 0
        return readable if self.is_full or not self.is_established else readable | 2

    def _drop_all(self) -> None:
        """Forget input and output."""
        self._incoming.clear()
        self.incoming_size = 0
        self.changed = bool


class UnixEnd(StreamEnd):
    """One end of a connection over a Unix socket.  What is sent is there at once."""

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
            self.peer = peer.peer = None  # both are freed at once: a simulation rarely collects garbage

    def abort(self) -> None:
        self.peer.error = errno.ECONNRESET
        self.close()

    def vanish(self) -> None:
        """Forget it, since the host has crashed."""
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
