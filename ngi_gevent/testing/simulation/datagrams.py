"""Datagram sockets: UDP, and Unix datagrams."""

from __future__ import annotations

import errno
import socket
from collections import deque
from functools import partial
from typing import Any

from ngi_gevent.testing.simulation.bound import BoundSocket, World
from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import ANY, LOOPBACK, Site, family_of, is_any, is_broadcast, plain_host

__all__ = ["BUFFER", "DatagramSocket"]

#: The bytes of datagrams that a socket stores until they are received.  For Unix sockets: the bytes that one sender can
#: have pending.
BUFFER = 212_992

#: Overhead that each datagram counts for, in bytes.
OVERHEAD = 768

#: Length of the longest datagram over UDP, in bytes.
MAX_SIZE = 65_507

#: The number of datagrams that a Unix socket stores.
MAX_QUEUE = 11


class DatagramSocket(BoundSocket):
    """A datagram socket of a simulation.  No method blocks."""

    kind = socket.SOCK_DGRAM

    def __init__(self, world: World, site: Site, family: int) -> None:
        super().__init__(world, site, family)
        self.can_broadcast = False
        self.is_dual_stack = family == socket.AF_INET6
        self._queue: deque[tuple[bytes, Any, DatagramSocket]] = deque()
        self._size = 0
        self._unreceived = 0  # bytes from this socket that receivers over Unix sockets still store

    def queued(self) -> int:
        """Return how many bytes of output the receivers have not received."""
        return self._unreceived

    def readiness(self) -> int:
        return 3 if self._queue else 2

    def recvfrom_into(self, buffer: memoryview, size: int = 0, flags: int = 0, /) -> tuple[int, Any]:
        """Receive a datagram into *buffer*.  Return its length, which can be more than the buffer holds, and the
        sender.

        :raises BlockingIOError: there is no datagram.
        """
        self.check_open()
        if not self._queue:
            raise error(errno.EAGAIN)
        data, name, sender = self._queue.popleft()
        self._size -= len(data) + OVERHEAD
        if self.family == socket.AF_UNIX:
            sender._unreceived -= len(data) + OVERHEAD
        taken = min(len(data), size or len(buffer))
        buffer[:taken] = data[:taken]
        return (len(data) if flags & socket.MSG_TRUNC else taken), name

    def sendto(self, data: bytes, address: Any, /) -> int:
        """Send a datagram.

        :raises BlockingIOError: a Unix socket has no room for it.
        :raises OSError: it is too long, or cannot be sent there.
        """
        self.check_open()
        if self.family == socket.AF_UNIX:
            self._send_to_path(data, address)
        else:
            self._send_to_port(data, address[0], address[1])
        return len(data)

    def close(self) -> None:
        if not self.is_closed:
            super().close()
            while self._queue:
                data, _, sender = self._queue.popleft()
                sender._unreceived -= len(data) + OVERHEAD

    def _send_to_path(self, data: bytes, path: str | bytes) -> None:
        size = len(data) + OVERHEAD
        if size > BUFFER:
            raise error(errno.EMSGSIZE)
        receiver = self.site.files.find(path)
        if receiver.kind != self.kind:
            raise error(errno.EPROTOTYPE)
        if self._unreceived + size > BUFFER or len(receiver._queue) >= MAX_QUEUE:
            raise error(errno.EAGAIN)
        self._unreceived += size
        name = self.name if self.is_bound else None
        label = f"{self.site.name}:{_text(name)} -> {_text(path)} {len(data)} bytes"
        piece = self.world.trace.new_piece()
        self.world.trace.note("datagram", self.site.name, label, piece)
        receiver.take(data, name, self, label, piece)

    def _send_to_port(self, data: bytes, host: str, port: int) -> None:
        if not port:
            raise error(errno.EINVAL)
        if len(data) > MAX_SIZE:
            raise error(errno.EMSGSIZE)
        plain = plain_host(host)
        if is_broadcast(plain):
            if not self.can_broadcast:
                raise error(errno.EACCES)
            targets = self.world.all_sites()
        else:
            target = self.world.site_of(self.site, plain)
            targets = [] if target is None else [target]
        if not self.is_bound:
            self.bind((ANY[socket.AddressFamily(self.family)], 0))
        for target in targets:
            self._send(data, target, plain, port)
        if not targets:
            self.world.trace.note("lost", self.site.name, f"a datagram to {host}:{port}, which no host has")

    def _send(self, data: bytes, target: Site, host: str, port: int) -> None:
        world, site = self.world, self.site
        if is_any(host):
            host = LOOPBACK[family_of(host)]
        source = self.name[0]
        if is_any(source):
            source = site.source(target.addresses[socket.AF_INET] if is_broadcast(host) else host)
        sender = (source, self.name[1])
        label = f"{site.name}:{self.name[1]} -> {target.name}:{port} {len(data)} bytes"
        piece = world.trace.new_piece()
        world.trace.note("datagram", site.name, label, piece)
        arrive = partial(self._arrive, data, target, host, port, sender, label, piece)
        if not world.way(site, target).carry(len(data), arrive):
            world.trace.note("lost", site.name, label, piece)

    def _arrive(self, data: bytes, target: Site, host: str, port: int, sender: Any, label: str, piece: int) -> None:
        world = self.world
        receivers = target.receivers(self.kind, host, port) if target.is_up else []
        if not receivers or world.way(self.site, target).is_cut:
            world.trace.note("lost", target.name, label, piece)
            return
        # As on Linux, one of several sockets receives all datagrams of the same sender.
        chosen = receivers if is_broadcast(host) else [receivers[sender[1] % len(receivers)]]
        for receiver in chosen:
            receiver.take(data, receiver.shown(sender), self, label, piece)

    def take(self, data: bytes, name: Any, sender: DatagramSocket, label: str, piece: int) -> None:
        """Store a datagram until it is received, if there is room."""
        size = len(data) + OVERHEAD
        if self._size + size > BUFFER:
            self.world.trace.note("lost", self.site.name, f"{label}, for which there is no room", piece)
            return
        self.world.trace.note("receive", self.site.name, label, piece)
        self._size += size
        self._queue.append((data, name, sender))
        self.world.loop.changed(self.descriptor)


def _text(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
