"""The network that an implementation uses: sockets, names and descriptors.

The modules of ``sockets`` use the operating system only through a ``Network``.  The exceptions are the event loop,
which belongs to the hub, and the clock, which belongs to the thread.  Each implementation has a network, and passes it
to its listeners, connection attempts, connections and UDP listeners.  A simulation replaces it with a network whose
sockets are Python objects, on a loop that has watchers for their descriptors.  For this, two rules apply:

* The package uses sockets only through ``Socket``, and sets options and queries the kernel through ``Network``.
* Other modules use constants and exception types of ``socket``, ``errno`` and ``os``, but no functions except those
  that work on text.

Stream sockets are gevent's.  Other sockets are the standard library's, also in a patched program.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gevent import socket as gevent_socket
from gevent.monkey import get_original

if TYPE_CHECKING:
    from ngi_gevent.interfaces import KeepAlive

__all__ = ["Network", "Resolved", "Socket"]
_make_socket: type[socket.socket] = get_original("socket", "socket")
_getaddrinfo: Callable[..., list[Resolved]] = get_original("socket", "getaddrinfo")
# The original function, because the patched one waits on a hub.
_poll: Callable[[], select.poll] = get_original("select", "poll")

#: The event for a peer that has finished sending; None if the platform does not have it.
_FINISHED: int | None = getattr(select, "POLLRDHUP", None)

#: One result of ``getaddrinfo``: family, kind, protocol, canonical name, and the address for that family.
Resolved: TypeAlias = "tuple[int, int, int, str, Any]"

_PEER_CREDENTIALS: int | None = getattr(socket, "SO_PEERCRED", None)  # only on Linux

_CREDENTIALS = struct.Struct("iII")
#: Fields of Linux's ``struct tcp_info``: the state, unacknowledged segments, and bytes acknowledged, received and
#: unsent.
_TCP_INFO = struct.Struct("=B23xI92xQQ8xI")
_OVER, _INPUT_OVER = 7, (8, 9, 11)  # states: TCP_CLOSE, and others in which the peer has ended its output

#: The families of TCP sockets.  Sockets of other families refuse TCP's options.
_OF_TCP = socket.AF_INET, socket.AF_INET6

#: TCP's options for the three parts of ``keep_alive``.  macOS has another name for the first.
_KEEP_ALIVE = (
    getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0)),
    socket.TCP_KEEPINTVL,
    socket.TCP_KEEPCNT,
)

_LINGER_FOR_NOTHING = struct.pack("ii", 1, 0)


class Socket(Protocol):
    """The part of a socket that the package uses.

    ``Network.plain`` returns a socket whose methods raise ``BlockingIOError`` instead of blocking.

    Sockets that a caller of ``listener`` or ``udp_listener`` passes have these methods, too.
    """

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def bind(self, address: Any, /) -> None: ...
    def listen(self, backlog: int, /) -> None: ...
    def accept(self) -> Any: ...  # required by gevent's server, which calls Network.accept instead
    def getsockname(self) -> Any: ...
    def getpeername(self) -> Any: ...
    def recv(self, size: int, flags: int = ..., /) -> bytes: ...
    def send(self, data: bytes | memoryview, flags: int = ..., /) -> int: ...
    def sendmsg(self, pieces: Iterable[bytes | memoryview], /) -> int: ...
    def recvfrom_into(self, buffer: memoryview, size: int, flags: int, /) -> tuple[int, Any]: ...
    def sendto(self, data: bytes, address: Any, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Network:
    """The network of the operating system.  Each method can be called on any thread, and only two of them block."""

    counts_bytes = sys.platform == "linux"  #: Whether the kernel counts the bytes of connections over TCP.

    # Names.

    def resolve(self, host: str, port: int, kind: int, flags: int = 0) -> list[Resolved]:
        """Return the addresses of a host and port for sockets of *kind*, in the order of ``getaddrinfo``.

        Blocks the greenlet to look up a name.  A numeric host never blocks: it does not wait for gevent's thread pool,
        which can be busy, and which cannot start once the main thread has ended.

        :raises OSError: there is no such host.
        """
        with suppress(socket.gaierror):
            return _getaddrinfo(host, port, type=kind, flags=flags | socket.AI_NUMERICHOST)
        found: list[Any] = gevent_socket.getaddrinfo(host, port, type=kind, flags=flags)
        return found

    def stat(self, path: str | bytes) -> os.stat_result:
        """Return the status of the file of a Unix socket, or raise ``OSError``."""
        return os.stat(path)

    def unlink(self, path: str | bytes) -> None:
        """Remove the file of a Unix socket, or raise ``OSError``."""
        os.unlink(path)

    def restrict_file(self, sock: Socket) -> None:
        """If possible, let only this user send to the file that *sock* will be bound to."""
        with suppress(OSError):  # only Linux has this
            os.fchmod(sock.fileno(), 0o600)

    def change_file(self, path: str | bytes, mode: int | None, owner: tuple[int, int] | None) -> None:
        """Change the owner and the permissions of the file that a Unix socket is bound to, or raise ``OSError``."""
        if owner is not None:
            os.chown(path, *owner)
        if mode is not None:
            os.chmod(path, mode)

    def lock(self, folder: str) -> int:
        """Lock *folder* for this process, and return the lock for ``unlock``.

        :raises BlockingIOError: another process has locked it.
        :raises OSError: it cannot be locked.
        """
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def unlock(self, lock: int) -> None:
        """Release a lock."""
        try:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a child that was forked in between also has the descriptor
        finally:
            os.close(lock)

    # Descriptors.

    def max_descriptors(self) -> int | None:
        """Return how many descriptors the process can open; None for no limit."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if descriptors == resource.RLIM_INFINITY else descriptors

    def check_room(self, count: int) -> None:
        """Raise ``OSError`` unless the process can open *count* more descriptors."""
        opened: list[int] = []
        try:
            while len(opened) < count:
                opened += os.pipe()
        finally:
            for descriptor in opened:
                os.close(descriptor)

    # Sockets.

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """Return a new socket, gevent's for streams, or raise ``OSError``."""
        if kind == socket.SOCK_STREAM:
            return gevent_socket.socket(family, kind, protocol)
        sock = _make_socket(family, kind, protocol)
        sock.setblocking(False)
        return sock

    def adopt(self, sock: Any) -> Socket:
        """Return *sock*, which the application made, as a socket of this network."""
        sock.setblocking(False)
        return sock  # type: ignore[no-any-return]

    def plain(self, sock: Socket) -> Socket:
        """Return the non-blocking socket inside the gevent socket *sock*."""
        return _plain(sock)  # type: ignore[no-any-return]

    def connect(self, sock: Socket, address: Any) -> None:
        """Connect *sock*, a new socket.  Blocks the greenlet.

        :raises BlockingIOError: the queue of the Unix socket at *address* is full.  Try again later.
        :raises OSError: the connection attempt failed.
        """
        # A gevent socket would wait until the Unix socket is writable, but that does not depend on the queue.
        connecting: Any = _plain(sock) if sock.family == socket.AF_UNIX else sock
        connecting.connect(address)

    def accept(self, sock: Socket) -> tuple[Socket, Any] | None:
        """Return the next connection of a listening socket, and the address of the peer; None if there is none yet.

        :raises OSError: accepting failed.
        """
        listening = _plain(sock)
        try:
            descriptor, address = listening._accept()
        except BlockingIOError:
            return None
        return gevent_socket.socket(listening.family, listening.type, listening.proto, fileno=descriptor), address

    def close(self, sock: Socket) -> None:
        """Close the socket of a connection, at once.

        A gevent socket would first wake greenlets that wait for it, in the next turn of the loop.  Greenlets never wait
        for the socket of a connection, and that turn would be a quarter of a short connection's cost.
        """
        _plain(sock).close()

    def let_others_run(self) -> None:
        """Let other processes that are ready use the processor first."""
        os.sched_yield()

    # Options.

    def allow_address_reuse(self, sock: Socket) -> None:
        """Let *sock* be bound to a port that has connections in TIME_WAIT."""
        _set(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)

    def share_port(self, sock: Socket) -> None:
        """Let other processes bind sockets to the same port."""
        _set(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT)

    def set_dual_stack(self, sock: Socket, on: bool) -> None:
        """Set whether *sock*, an IPv6 socket, accepts IPv4 connections too, if it is bound to ``::``."""
        _set(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not on))

    def allow_broadcast(self, sock: Socket) -> None:
        """Let *sock* send to broadcast addresses."""
        _set(sock, socket.SOL_SOCKET, socket.SO_BROADCAST)

    def send_at_once(self, sock: Socket) -> None:
        """Make the kernel send small output at once.  Only TCP would otherwise hold it back."""
        if sock.family in _OF_TCP:
            _set(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def keep_alive(self, sock: Socket, how: KeepAlive) -> None:
        """Make the kernel probe silent peers, over TCP.

        :param how: True for the kernel's values; False for no probes; or seconds of silence before the first probe,
            seconds between two probes, and the number of probes without an answer.
        """
        if how is False or sock.family not in _OF_TCP:
            return
        _set(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if how is not True:
            for option, value in zip(_KEEP_ALIVE, how, strict=True):
                _set(sock, socket.IPPROTO_TCP, option, value)

    def reset_on_close(self, sock: Socket) -> None:
        """Make the close of *sock* reset its connection, and drop unsent output."""
        # macOS refuses if the peer has reset the connection, and the caller must still close the socket.
        with suppress(OSError):
            _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_FOR_NOTHING)

    # Queries to the kernel.

    def queued_output(self, sock: Socket) -> int:
        """Return how many bytes of output in the kernel the peer has not taken."""
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
        except OSError:  # not supported by some systems
            return 0
        return queued[0]

    def traffic(self, sock: Any, ends: tuple[bool, bool]) -> tuple[int, int]:
        """Return how many bytes were received and sent over TCP; 0 if the kernel does not count them.

        :param ends: whether input and output have ended.  The kernel counts each end as one byte.
        """
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        except (OSError, AttributeError):  # over a Unix socket, or on another system
            return 0, 0
        state, unacknowledged, sent, received, unsent = _TCP_INFO.unpack(info)
        if unacknowledged or unsent:  # rare at the end of a connection, and this query takes longer
            sent += self.queued_output(sock)
        return received - (ends[0] if state == _OVER else state in _INPUT_OVER), sent - ends[1]

    def send_buffer_size(self, sock: Socket) -> int:
        """Return how many bytes of output the kernel holds for *sock* at most."""
        plain: Any = sock
        return plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)  # type: ignore[no-any-return]

    def peer_credentials(self, sock: Socket) -> tuple[int, int, int] | None:
        """Return the process, user and group of the peer of *sock*; None if the kernel does not support this."""
        plain = _plain(sock)
        if plain.family != socket.AF_UNIX or _PEER_CREDENTIALS is None:
            return None
        pid, uid, gid = _CREDENTIALS.unpack(plain.getsockopt(socket.SOL_SOCKET, _PEER_CREDENTIALS, _CREDENTIALS.size))
        return pid, uid, gid

    def has_input(self, sock: Socket) -> bool:
        """Return whether *sock* has something to receive: input, its end, or an error."""
        return bool(_poll_for(sock, select.POLLIN))

    def is_broken(self, sock: Socket) -> bool:
        """Return whether the connection of *sock* has broken, or has ended in both directions."""
        return bool(_poll_for(sock, 0))

    def has_error(self, sock: Socket) -> bool:
        """Return whether the connection of *sock* has broken."""
        return bool(_poll_for(sock, 0) & select.POLLERR)

    def take_error(self, sock: Any) -> OSError:
        """Remove and return the error that broke the connection of *sock*."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EPIPE
        return OSError(code, os.strerror(code))

    def peer_has_finished(self, sock: Socket) -> bool:
        """Return whether the peer has finished sending, also if there is still input to receive."""
        if _FINISHED is not None:
            return bool(_poll_for(sock, _FINISHED))
        try:  # this cannot detect an end behind unread input
            return not _plain(sock).recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _plain(sock: Any) -> Any:
    # The only use of a private attribute of gevent's sockets.  Their own recv and send wait, with a second watcher for
    # the descriptor.
    return getattr(sock, "_sock", sock)


def _set(sock: Any, level: int, option: int, value: int | bytes = 1) -> None:
    sock.setsockopt(level, option, value)


def _poll_for(sock: Socket, events: int) -> int:
    """Return which of *events*, errors and the end of both directions have happened."""
    poll = _poll()
    poll.register(sock.fileno(), events)
    found = poll.poll(0)
    return found[0][1] if found else 0
