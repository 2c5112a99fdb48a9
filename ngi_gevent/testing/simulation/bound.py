"""The common base of simulated stream and datagram sockets: a descriptor, and a name."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any, Protocol

from ngi_gevent.testing.simulation.errors import HostCrashed
from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.sites import ANY, Site

__all__ = ["BoundSocket", "World"]


class World(Protocol):
    """The methods of the internet that a socket uses."""

    loop: Any
    trace: Any
    draws: Any

    def next_descriptor(self) -> int:
        """Return a new descriptor."""

    def way(self, origin: Site, target: Site) -> Any:
        """Return the way from one host to another."""

    def site_of(self, origin: Site, host: str) -> Site | None:
        """Return the host that *origin* reaches at an address, or None."""

    def all_sites(self) -> list[Site]:
        """Return all hosts."""


class BoundSocket:
    """A socket of a simulation.

    :ivar name: the address that it is bound to. Until it is bound, the wildcard address of its family.
    """

    kind: int
    is_listening = False

    def __init__(self, world: World, site: Site, family: int) -> None:
        site.check_room(1)
        self.world = world
        self.site = site
        self.family = family
        self.name: Any = "" if family == socket.AF_UNIX else (ANY[socket.AddressFamily(family)], 0)
        self.is_bound = False
        self.is_closed = False
        self._generation = site.generation
        self.shares_port = False
        self.reuses_address = False
        self.is_dual_stack = False
        self.descriptor = world.next_descriptor()
        site.add(self.descriptor, self)
        world.loop.add_descriptor(self.descriptor, self)

    def __repr__(self) -> str:
        return f"<socket of host {self.site.name!r}, bound to {self.name!r}>"

    @property
    def type(self) -> int:
        """The kind, as ``socket.type`` of the standard library."""
        return self.kind

    def takes(self, family: int) -> bool:
        """Return whether the socket receives from addresses of *family*."""
        return self.family == family or (self.is_dual_stack and family == socket.AF_INET)

    def readiness(self) -> int:
        """Return what the descriptor is ready for: 1 to read, 2 to write, 3 for both."""
        raise NotImplementedError

    def poll(self) -> int:
        """Return the pending events, as ``select.poll`` does."""
        return select.POLLIN if self.readiness() & 1 else 0

    def fileno(self) -> int:
        """Return the descriptor; -1 after ``close``."""
        return -1 if self.is_closed else self.descriptor

    def bind(self, address: Any, /) -> None:
        """Bind the socket.

        :raises OSError: the address is in use, or not one of this host.
        """
        self.check_open()
        if self.is_bound:
            raise error(errno.EINVAL)
        if self.family == socket.AF_UNIX:
            self.name = self.site.files.bind(address, self)
        else:
            host = address[0] or ANY[socket.AddressFamily(self.family)]
            self.name = (host, self.site.bind(self, host, address[1]))
        self.is_bound = True

    def getsockname(self) -> Any:
        """Return the address of this side."""
        self.check_open()
        return self.shown(self.name)

    def shown(self, name: Any) -> Any:
        """Return *name* in the form that Python uses for addresses of this family."""
        if self.family == socket.AF_INET6:
            host = name[0]
            return (f"::ffff:{host}" if "." in host and not host.startswith("::") else host, name[1], 0, 0)
        return name

    def setsockopt(self, *_: Any) -> None:
        """Raise: options are methods of the network."""
        raise error(errno.ENOPROTOOPT)

    def check_open(self) -> None:
        """Raise if the socket is closed, or its host has crashed."""
        if self._generation != self.site.generation:
            raise HostCrashed(f"host {self.site.name!r} has crashed since this socket was created")
        if self.is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        """Close the socket."""
        if self.is_closed:
            return
        self.is_closed = True
        self.site.remove(self.descriptor)
        self.world.loop.remove_descriptor(self.descriptor)
        if self.is_bound:
            if self.family == socket.AF_UNIX:
                self.site.files.close(self)
            else:
                self.site.unbind(self, self.name[1])
