"""The network of one host in a simulation, which replaces the kernel's."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from gevent.event import Event

from ngi_gevent.sockets.network import Network, Resolved, Socket
from ngi_gevent.testing.simulation.bound import BoundSocket, World
from ngi_gevent.testing.simulation.datagrams import BUFFER, DatagramSocket
from ngi_gevent.testing.simulation.errors import HostCrashed, NotSimulated
from ngi_gevent.testing.simulation.files import Files
from ngi_gevent.testing.simulation.sites import Site, is_loopback, plain_host
from ngi_gevent.testing.simulation.stream_sockets import StreamSocket
from ngi_gevent.testing.simulation.streams import FINISHED, SEND_BUFFER

if TYPE_CHECKING:
    from ngi_gevent.interfaces import KeepAlive

__all__ = ["HostNetwork"]

#: The poll events of a connection that was reset, or that has ended in both directions.
BROKEN = select.POLLERR | select.POLLHUP

PROTOCOLS = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}


class Names(World, Protocol):
    """The methods of the internet that a network uses."""

    def addresses(self, origin: Site, name: str) -> list[tuple[int, str]]:
        """Return the families and addresses of a host name, the preferred first."""


class HostNetwork(Network):
    """The network of a host.  After a crash, all methods that make an object raise ``HostCrashed``."""

    counts_bytes = True

    def __init__(self, internet: Names, site: Site) -> None:
        self._internet = internet
        self._site = site
        self._generation = site.generation

    @property
    def addresses(self) -> tuple[str, str]:
        """The IPv4 address and the IPv6 address of the host."""
        return self._site.addresses[socket.AF_INET], self._site.addresses[socket.AF_INET6]

    def _check_up(self) -> None:
        if self._generation != self._site.generation:
            raise HostCrashed(f"host {self._site.name!r} has crashed since this object was created")

    def _files(self) -> Files:
        self._check_up()
        return self._site.files

    # Names.

    def resolve(self, host: str, port: int, kind: int, flags: int = 0) -> list[Resolved]:
        self._check_up()
        protocol = PROTOCOLS[socket.SocketKind(kind)]
        numeric = _numeric(host)
        if numeric is not None:
            family, plain, scope = numeric
            return [(family, kind, protocol, "", _name(family, plain, port, scope))]
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {host!r} is not numeric")
        found = self._internet.addresses(self._site, host)
        return [(family, kind, protocol, "", _name(family, address, port)) for family, address in found]

    def stat(self, path: str | bytes) -> os.stat_result:
        return self._files().stat(path)

    def unlink(self, path: str | bytes) -> None:
        self._files().unlink(path)

    def restrict_file(self, sock: Socket) -> None:
        """Do nothing: no other user is simulated."""

    def change_file(self, path: str | bytes, mode: int | None, owner: tuple[int, int] | None) -> None:
        self._files().change(path, mode, owner)

    def lock(self, folder: str) -> Any:
        return self._files().lock(folder)

    def unlock(self, lock: Any) -> None:
        self._files().unlock(lock)

    # Descriptors.

    def max_descriptors(self) -> int | None:
        return self._site.max_descriptors

    def check_room(self, count: int) -> None:
        self._site.check_room(count)

    # Sockets.

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> Any:
        self._check_up()
        make = StreamSocket if kind == socket.SOCK_STREAM else DatagramSocket
        return make(self._internet, self._site, family)

    def adopt(self, sock: Any) -> Any:
        if not isinstance(sock, BoundSocket):
            raise NotSimulated(f"a host of a simulation cannot listen on a real socket; got {sock!r}")
        if sock.site is not self._site:
            raise NotSimulated(f"a host cannot listen on a socket of another host; got {sock!r}")
        return sock

    def plain(self, sock: Socket) -> Socket:
        # The methods of the socket itself, without gevent's wrapper
        return cast(Socket, getattr(sock, "end", None) or sock)

    def connect(self, sock: Any, address: Any) -> None:
        self._check_up()
        if sock.family == socket.AF_UNIX:
            sock.connect_to_path(address)
            return
        done = Event()
        end = sock.connect_to_port(address[0], address[1], done.set)
        done.wait()
        if end.error:
            raise self._with_cause(end.take_error(), *address[:2])
        sock.connected()

    def _with_cause(self, error: OSError, host: str, port: int) -> OSError:
        """Return *error*; with the cause if another host listens on its own loopback, at this address."""
        if error.errno != errno.ECONNREFUSED or not is_loopback(plain_host(host)):
            return error
        for site in self._internet.all_sites():
            for sock in site.receivers(socket.SOCK_STREAM, plain_host(host), port):
                if sock.is_listening:
                    only_there = is_loopback(sock.name[0])
                    advice = f"let it listen on {(site.name, 0)}" if only_there else f"connect to {(site.name, port)}"
                    cause = f"this address is {self._site.name!r} itself; to reach {site.name!r}, {advice}"
                    return OSError(error.errno, f"{error.strerror}: {cause}")
        return error

    def accept(self, sock: Any) -> tuple[Any, Any] | None:
        self._check_up()
        try:
            return cast("tuple[Any, Any]", sock.accept())
        except BlockingIOError:
            return None

    def close(self, sock: Socket) -> None:
        sock.close()

    def let_others_run(self) -> None:
        """Do nothing: there are no other processes."""

    # Options.

    def allow_address_reuse(self, sock: Any) -> None:
        sock.reuses_address = True

    def share_port(self, sock: Any) -> None:
        sock.shares_port = True

    def set_dual_stack(self, sock: Any, on: bool) -> None:
        sock.is_dual_stack = on

    def allow_broadcast(self, sock: Any) -> None:
        sock.can_broadcast = True

    def send_at_once(self, sock: Socket) -> None:
        """Do nothing: small output is never delayed."""

    def keep_alive(self, sock: Socket, how: KeepAlive) -> None:
        """Do nothing: simulated kernels do not probe peers."""

    def reset_on_close(self, sock: Any) -> None:
        if sock.end is not None:
            sock.end.resets = True

    # Questions to the kernel.

    def queued_output(self, sock: Any) -> int:
        if isinstance(sock, DatagramSocket):
            return sock.queued()
        return 0 if sock.end is None else cast(int, sock.end.queued())

    def traffic(self, sock: Any, ends: tuple[bool, bool]) -> tuple[int, int]:
        is_tcp = sock.end is not None and sock.family != socket.AF_UNIX
        return (sock.end.received, sock.end.sent) if is_tcp else (0, 0)

    def send_buffer_size(self, sock: Socket) -> int:
        return BUFFER if isinstance(sock, DatagramSocket) else SEND_BUFFER

    def peer_credentials(self, sock: Socket) -> tuple[int, int, int] | None:
        return (os.getpid(), os.getuid(), os.getgid()) if sock.family == socket.AF_UNIX else None

    def has_input(self, sock: Any) -> bool:
        return bool(sock.poll() & (select.POLLIN | BROKEN))

    def is_broken(self, sock: Any) -> bool:
        return bool(sock.poll() & BROKEN)

    def has_error(self, sock: Any) -> bool:
        return bool(sock.poll() & select.POLLERR)

    def take_error(self, sock: Any) -> OSError:
        return cast(OSError, sock.end.take_error())

    def peer_has_finished(self, sock: Any) -> bool:
        return bool(sock.poll() & (FINISHED | BROKEN))


def _numeric(host: str) -> tuple[int, str, int] | None:
    """Return the family, the address and the scope of *host* if it is an address.  Return None if it is a name."""
    plain, _, scope = host.partition("%")
    for family in socket.AF_INET, socket.AF_INET6:
        with suppress(OSError, ValueError):
            packed = socket.inet_pton(family, plain)
            return family, socket.inet_ntop(family, packed), int(scope or 0)
    return None


def _name(family: int, host: str, port: int, scope: int = 0) -> Any:
    return (host, port) if family == socket.AF_INET else (host, port, 0, scope)
