"""Stream sockets that listen, connect, or are connected."""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ngi_gevent.testing.simulation.bound import BoundSocket, World
from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import Site, is_any, plain_host
from ngi_gevent.testing.simulation.streams import StreamEnd, UnixEnd
from ngi_gevent.testing.simulation.tcp import TCPEnd

__all__ = ["StreamSocket"]

#: Seconds until the kernel stops looking for a host in its own network.
UNREACHABLE_AFTER = 3.0


class StreamSocket(BoundSocket):
    """A stream socket of a simulation.  No method blocks.

    :ivar end: its end of the connection; None before the connection begins.
    """

    kind = socket.SOCK_STREAM

    def __init__(self, world: World, site: Site, family: int, end: StreamEnd | None = None) -> None:
        super().__init__(world, site, family)
        self.end: StreamEnd | None = None
        self._backlog = 0
        self._begun = 0  # connections that the peers have not confirmed
        self._queue: deque[StreamEnd] = deque()  # connections that wait to be accepted
        self._waiting: deque[Callable[[], object]] = deque()  # attempts for which the queue has no room
        if end is not None:
            self._take_end(end)

    @property
    def is_listening(self) -> bool:  # type: ignore[override]
        """Whether the socket accepts connections."""
        return self._backlog > 0

    def _take_end(self, end: StreamEnd) -> None:
        self.end = end
        self.name = end.name
        descriptor, changed = self.descriptor, self.world.loop.changed
        end.changed = lambda: changed(descriptor)
        end.changed()

    # Connections.

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive input."""
        self.check_open()
        if self.end is None:
            raise error(errno.EINVAL if self.family == socket.AF_UNIX else errno.ENOTCONN)
        return self.end.recv(size, flags)

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Send output."""
        self.check_open()
        if self.end is None:
            raise error(errno.ENOTCONN if self.family == socket.AF_UNIX else errno.EPIPE)
        return self.end.send(data)

    def sendmsg(self, pieces: Iterable[bytes | memoryview], *_: Any) -> int:
        """Send several pieces."""
        return self.send(b"".join(pieces))

    def shutdown(self, how: int, /) -> None:
        """End output, input, or both.  On a listening socket, stop listening."""
        self.check_open()
        if self._backlog and how != socket.SHUT_WR:
            self._stop_listening()
        elif self.end is not None:
            self.end.shutdown(how)
        elif self.family != socket.AF_UNIX:
            raise error(errno.ENOTCONN)

    def getpeername(self) -> Any:
        """Return the address of the peer."""
        end = self._connected()
        if not end.is_established or (end.is_over() and self.family != socket.AF_UNIX):
            raise error(errno.ENOTCONN)
        return self.shown(end.peer.name)

    def close(self) -> None:
        if self.is_closed:
            return
        super().close()
        self._stop_listening()
        if self.end is not None:
            self.end.close()

    def _stop_listening(self) -> None:
        """Reset the connections that were not accepted, and refuse the pending attempts."""
        queue, self._queue = self._queue, deque()
        waiting, self._waiting = self._waiting, deque()
        self._backlog = 0
        for end in queue:
            end.abort()
        for attempt in waiting:
            attempt()

    def _connected(self) -> StreamEnd:
        self.check_open()
        if self.end is None:
            raise error(errno.ENOTCONN)
        return self.end

    def readiness(self) -> int:
        if self.end is not None:
            return self.end.readiness()
        return 1 if self._queue or not self._backlog else 0

    def poll(self) -> int:
        """Return the pending events, as ``select.poll`` does."""
        if self.end is not None:
            return self.end.poll()
        return select.POLLIN if self._queue else 0 if self._backlog else select.POLLHUP

    # Listening.

    def listen(self, backlog: int, /) -> None:
        """Accept connections."""
        self.check_open()
        self._backlog = backlog + 1  # refused, as on Linux

    def accept(self) -> tuple[StreamSocket, Any]:
        """Return the next connection.

        :raises BlockingIOError: no connection is waiting.
        """
        self.check_open()
        if not self._backlog:
            raise error(errno.EINVAL)
        self.site.check_room(1)  # before the error, as on Linux
        if not self._queue:
            raise error(errno.EAGAIN)
        end = self._queue.popleft()
        self._let_in()
        accepted = StreamSocket(self.world, self.site, self.family, end)
        self.world.trace.note("accept", self.site.name, end.peer.label)
        return accepted, self.shown(end.peer.name)

    def queue(self, end: StreamEnd) -> None:
        """Remove a connection from the queue, and return it."""
        self._queue.append(end)
        self.world.loop.changed(self.descriptor)

    def is_full(self) -> bool:
        """Return whether the queue of connections is full."""
        return len(self._queue) + self._begun >= self._backlog

    def begin(self, end: TCPEnd) -> None:
        """Accept the connection attempt of *end*'s peer, and queue it once the peer has confirmed the connection."""
        self._begun += 1
        end.changed = partial(self._begin_is_over, end)
        end.accept()

    def _begin_is_over(self, end: TCPEnd) -> None:
        self._begun -= 1
        end.changed = bool
        if end.is_gone:  # the peer has given up
            self._let_in()
        elif self._backlog:
            self.queue(end)
        else:
            end.abort()

    def wait_for_room(self, attempt: Callable[[], object]) -> None:
        """Call *attempt* once there is room in the queue, or the socket is closed."""
        self._waiting.append(attempt)

    def _let_in(self) -> None:
        if self._waiting:
            self._waiting.popleft()()

    # Connecting.

    def connect_to_path(self, path: str | bytes) -> None:
        """Connect to a Unix socket.

        :raises BlockingIOError: its queue is full.
        :raises OSError: no socket listens there.
        """
        self.check_open()
        listening = self.site.files.find(path)
        if listening.kind != self.kind:
            raise error(errno.EPROTOTYPE)
        if not listening.is_listening:
            raise error(errno.ECONNREFUSED)
        if listening.is_full():
            raise error(errno.EAGAIN)
        ends = UnixEnd(self.world, self.site, self.name), UnixEnd(self.world, self.site, listening.name)
        names = f"{self.site.name}:client", _label(self.site, listening.name)
        for end, peer, label in zip(ends, reversed(ends), (names, reversed(names)), strict=True):
            end.peer, end.label, end.is_established = peer, " -> ".join(label), True
        self.world.trace.note("connect", self.site.name, ends[0].label)
        self._take_end(ends[0])
        listening.queue(ends[1])

    def connect_to_port(self, host: str, port: int, done: Callable[[], object]) -> TCPEnd:
        """Begin to connect over TCP, and call *done* when the attempt has succeeded or failed.  Return this end.

        :raises OSError: the attempt fails immediately.
        """
        self.check_open()
        world, site = self.world, self.site
        plain = plain_host(host)
        target = world.site_of(site, plain)
        name = self.name
        if not self.is_bound:
            name = (site.source(plain), site.pick_port())
        elif is_any(name[0]):
            name = (site.source(plain), name[1])
        if self.is_bound and any(end.name == name and end.target == (plain, port) for end in site.ends):
            raise error(errno.EADDRNOTAVAIL)  # the peer could not distinguish the two connections
        end = TCPEnd(world, site, name, (plain, port))
        self._take_end(end)
        end.changed = lambda: world.loop.after(0, done, host=site.name)
        label = f"{site.name}:{name[1]} -> {target.name if target else host}:{port}"
        end.label = label
        world.trace.note("connect", site.name, label)
        if target is None:
            world.loop.after(UNREACHABLE_AFTER, self._fail, end, errno.EHOSTUNREACH)
        else:
            self._travel(end, target, site.source(plain) if is_any(plain) else plain, port)
        return end

    def connected(self) -> None:
        """Report events to the application from now on: the attempt is over."""
        end = self.end
        assert end is not None
        self._take_end(end)

    def _fail(self, end: StreamEnd, code: int) -> None:
        if not end.is_gone:
            end.error = code
            end.is_gone = end.has_ended = end.has_no_input = True
            self.site.forget(end)
            end.changed()

    def _travel(self, end: TCPEnd, target: Site, host: str, port: int) -> None:
        """Deliver the attempt to the target host."""
        way = self.world.way(self.site, target)
        if way.is_cut:
            self.world.trace.note("hold", self.site.name, end.label)
            way.hold(lambda: self._go_on(end, target, host, port))
        else:
            self.world.loop.after(way.delay(0), self._arrive, end, target, host, port)

    def _go_on(self, end: TCPEnd, target: Site, host: str, port: int) -> None:
        self.world.trace.note("release", self.site.name, end.label)
        self._travel(end, target, host, port)

    def _arrive(self, end: TCPEnd, target: Site, host: str, port: int) -> None:
        way = self.world.way(self.site, target)
        if not target.is_up:
            target.missed.append(lambda: self._arrive(end, target, host, port))
        elif way.is_cut:
            self._travel(end, target, host, port)
        elif end.is_open and not end.is_gone:
            self._meet(end, target, host, port)

    def _meet(self, end: TCPEnd, target: Site, host: str, port: int) -> None:
        sockets = target.receivers(self.kind, host, port)
        listening = [sock for sock in sockets if sock.is_listening]
        back = self.world.way(target, self.site)
        if not listening:
            self.world.trace.note("refuse", target.name, end.label)
            self.world.loop.after(back.delay(0), self._fail, end, errno.ECONNREFUSED)
            return
        chosen = listening[self.world.draws.pick(len(listening))]
        if chosen.is_full():
            chosen.wait_for_room(lambda: self._arrive(end, target, host, port))
            return
        other = TCPEnd(self.world, target, (host, port), end.name)
        _join(self.world, end, other)
        chosen.begin(other)


def _join(world: World, client: TCPEnd, server: TCPEnd) -> None:
    """Connect two ends to each other."""
    there, back = world.way(client.site, server.site), world.way(server.site, client.site)
    names = f"{client.site.name}:{client.name[1]}", f"{server.site.name}:{server.name[1]}"
    client.join(server, there, f"{names[0]} -> {names[1]}")
    server.join(client, back, f"{names[1]} -> {names[0]}")


def _label(site: Site, name: Any) -> str:
    return f"{site.name}:{name[1]}" if isinstance(name, tuple) else f"{site.name}:{name!r}"
