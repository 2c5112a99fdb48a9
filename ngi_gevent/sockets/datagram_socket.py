"""Datagrams on sockets: the greenlet that receives for a listener, and what sends them, from its socket or others."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any
from weakref import finalize

from gevent import sleep
from greenlet import GreenletExit

from ngi_gevent.core import logs
from ngi_gevent.core.address import check_send_address, unix_path, with_address
from ngi_gevent.core.datagram import BaseDatagramListener
from ngi_gevent.core.threads import call_on
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IUDPListener, documented_by
from ngi_gevent.sockets.binding import Binding, ipv4_first
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, current_connection

if TYPE_CHECKING:
    from ngi_gevent.core.listening import ListenerOwner
    from ngi_gevent.interfaces import IUDPHandler
    from ngi_gevent.sockets.network import Network, Socket

__all__ = ["DatagramListener", "DatagramSender"]

READ = 1  # what gevent's io watchers watch for

#: Datagrams that a listener takes before everybody else has a turn, however many more there are.
MOST_AT_ONCE = 32

#: Seconds without receiving after the system refused it, so that an error that stays does not keep everybody busy.
PAUSE = 0.1

#: Seconds for which a datagram waits until the system takes it; then it is dropped.
SEND_TIMEOUT = 1.0

#: Seconds after which it is tried again; they double up to the second number.
FIRST_RETRY, LAST_RETRY = 0.001, 0.1

#: Receivers that are remembered while the buffer of a listener's socket is half full.
MOST_RECEIVERS = 1024

#: Has the system tell how long a datagram was of which it gives only the beginning.  Elsewhere it tells as much as it
#: gives, which is one byte more than would be taken, and enough to know.
TELL_LENGTH = socket.MSG_TRUNC if sys.platform == "linux" else 0


@documented_by(IUDPListener)
class DatagramListener(BaseDatagramListener):
    """A listener for datagrams on a socket.  Made on its hub's thread, and outstanding until its greenlet is done.

    It waits in one single place, where only its watcher and ``close`` resume it.
    """

    def __init__(
        self,
        network: Network,
        owner: ListenerOwner,
        hub: Any,
        address: Any,
        handler: IUDPHandler,
        buffer_size: int,
    ) -> None:
        super().__init__(owner, handler, buffer_size)
        self._hub = hub
        self._binding = Binding(network, address, socket.SOCK_DGRAM)
        self._socket = self._binding.socket
        try:
            self.address = self._socket.getsockname()
            self._buffer = memoryview(bytearray(buffer_size + 1))
            self._watcher = hub.loop.io(self._socket.fileno(), READ)
            logs.datagrams.info("receiving datagrams on %r", self.address)
        except BaseException:
            self._socket.close()
            self._binding.remove_file()
            raise
        self._sender = _ListenerSender(network, self._socket, self._check_open)
        self._open = True
        self._waiting = False
        self._failed = logs.Seldom(1)
        self._greenlet = ConnectionGreenlet(self.run, hub, self)
        hub.loop.run_callback(self._greenlet.switch)

    def close(self) -> None:
        if self._open:
            call_on(self._hub, super().close)

    def _check_send_address(self, address: Any) -> None:
        check_send_address(address)

    def _send(self, address: Any, data: bytes) -> None:
        call_on(self._hub, self._sender.send, address, data)

    def run(self) -> None:
        """The body of the greenlet: every callback is called in here."""
        while self._open:
            try:
                self._wait()
                self._receive()
            except GreenletExit:  # killed where it waits
                self.close()
            except BaseException as error:  # thrown in where it waits, by a Timeout that nobody has ended, for instance
                self._owner.handler_raised(self.address, "receiving", error)
        self._owner.forget(self)

    def _wait(self) -> None:
        """Wait for a datagram; also where there is one, this lets everybody else have a turn."""
        self._watcher.start(self._greenlet.switch)
        self._waiting = True
        try:
            self._hub.switch()
        finally:
            self._waiting = False
            if self._open:
                self._watcher.stop()

    def _receive(self) -> None:
        """Take what has arrived, or the beginning of it."""
        for _ in range(MOST_AT_ONCE):
            if not self._open:
                return
            try:
                length, sender = self._socket.recvfrom_into(self._buffer, 0, TELL_LENGTH)
            except BlockingIOError:
                return
            except OSError as error:
                # Most likely an answer of the network to something that was sent from this socket before.
                self._tell_failed(error)
                sleep(PAUSE)
                return
            self._take(sender, length, self._buffer[:length])

    def _tell_failed(self, error: OSError) -> None:
        logs.datagrams.warning(
            "receiving datagrams on %r failed, and goes on: %s", self.address, error.strerror, seldom=self._failed
        )

    def _stop_receiving(self) -> None:
        self._watcher.close()
        self._socket.close()
        self._binding.remove_file()
        if self._waiting:
            self._hub.loop.run_callback(self._end)
            self._owner.forget(self)
        logs.datagrams.info("no longer receiving datagrams on %r", self.address)

    def _end(self) -> None:
        if self._waiting:
            self._greenlet.switch()


class _Sender:
    """Sends datagrams to what users give as addresses."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._dropped = logs.Seldom(1)

    def send(self, address: Any, data: bytes) -> None:
        """Send *data* to *address*.  Blocks to look up a name, and up to ``SEND_TIMEOUT`` until the system takes it.

        Raises ``OSError``, naming the address.
        """
        try:
            self._send_to_first(self._reachable(self._targets(address)), data)
        except OSError as error:
            raise with_address(error, address) from error

    def _send_to_first(self, targets: list[tuple[int, Any]], data: bytes) -> None:
        """Send to the first of *targets* that the system sends to."""
        failures = []
        for family, target in targets:
            try:
                self._send(family, target, data)
            except OSError as error:
                failures.append(error)
            else:
                return
        raise failures[0]

    def _send(self, family: int, target: Any, data: bytes) -> None:
        """Send to *target*, an address in the form that sockets of that *family* take, or drop what it does not take.

        The receivers of Unix sockets decide when there is room again, so a handler that waited for one of them would
        leave all others unanswered.
        """
        in_handler = isinstance(current_connection(), DatagramListener)
        patience = 0.0 if family == socket.AF_UNIX and in_handler else SEND_TIMEOUT
        waited, pause = 0.0, FIRST_RETRY
        while True:
            try:
                self._try(family, target, data)
            except BlockingIOError as error:
                if waited >= patience:
                    self._drop(target, error)
                    return
            except PermissionError as error:
                if family != socket.AF_UNIX or error.errno != errno.EPERM:
                    raise
                # The receiver has connected its socket to another address.  Over UDP, the sender would not learn of it.
                self._drop(target, error)
                return
            else:
                return
            sleep(pause)
            waited += pause
            pause = min(2 * pause, LAST_RETRY)

    def _drop(self, target: Any, error: OSError) -> None:
        logs.datagrams.warning("a datagram to %r was dropped: %s", target, error.strerror, seldom=self._dropped)

    def _targets(self, address: Any) -> list[tuple[int, Any]]:
        """Return the families at which *address* can be reached, each with the address that its sockets take."""
        path = unix_path(address)
        if path is not None:
            return [(socket.AF_UNIX, path)]
        host, port = address[:2]
        if _is_numeric(socket.AF_INET, host):
            return [(socket.AF_INET, (host, port))]
        if _is_numeric(socket.AF_INET6, host):
            return [(socket.AF_INET6, address)]
        resolved = self._network.resolve(host, port, socket.SOCK_DGRAM)
        return [(family, target) for family, _, _, _, target in ipv4_first(resolved)]

    # What a kind of sender adds.

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Those of *targets* that this sends to, at least one; raises ``OSError`` if there is none."""
        return targets

    def _try(self, family: int, target: Any, data: bytes) -> None:
        """Send, without blocking; raises ``BlockingIOError`` if there is no room now."""
        raise NotImplementedError


class DatagramSender(_Sender):
    """The sockets from which datagrams are sent on one hub, one for each family, made when the first is sent."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._sockets: dict[int, Socket] = {}
        # They are closed also if nobody does it: those of the default implementation at the end of the program.
        self._close_sockets = finalize(self, _close_all, self._sockets)

    def close(self) -> None:
        """Close the sockets; nothing can be sent any more."""
        self._close_sockets()

    def _try(self, family: int, target: Any, data: bytes) -> None:
        try:
            self._socket(family).sendto(data, target)
        except BlockingIOError:
            if family != socket.AF_UNIX:
                raise
            # The buffer of the shared socket may be full of what other receivers have not received.
            with closing(self._network.make_socket(family, socket.SOCK_DGRAM)) as own:
                own.sendto(data, target)

    def _socket(self, family: int) -> Socket:
        if not self._close_sockets.alive:
            raise ImplementationClosed("this implementation was closed")
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = self._network.make_socket(family, socket.SOCK_DGRAM)
        return sock


class _ListenerSender(_Sender):
    """Sends from the socket of a listener.  *check_open* raises once the listener is closed."""

    def __init__(self, network: Network, sock: Socket, check_open: Callable[[], None]) -> None:
        super().__init__(network)
        self._socket = sock
        self._check_open = check_open
        self._room: int = network.send_buffer_size(sock)
        #: How much of the buffer was taken when a receiver was first sent something since it was half full.
        self._taken_before: dict[Any, int] = {}

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        self._check_open()  # it may have been closed during a look-up
        reachable = [(family, target) for family, target in targets if family == self._socket.family]
        if not reachable:
            here = self._socket.getsockname()
            raise OSError(errno.EAFNOSUPPORT, f"a listener on {here!r} sends to no address of another family")
        return reachable

    def _try(self, family: int, target: Any, data: bytes) -> None:
        self._check_open()  # it may have been closed since the last try
        if family == socket.AF_UNIX and self._takes_too_much(target):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._socket.sendto(data, target)

    def _takes_too_much(self, target: Any) -> bool:
        """Whether *target* would fill the rest of the buffer with what it does not receive.

        Linux keeps a datagram in its sender's buffer until it is received.  A receiver that is connected to the sender
        may leave any number of them unreceived; then nothing could be sent to anybody.  Once half of the buffer is
        taken, each receiver may add an eighth.
        """
        taken = self._network.queued_output(self._socket)
        if taken <= self._room // 2:
            self._taken_before.clear()
            return False
        if len(self._taken_before) >= MOST_RECEIVERS:
            self._taken_before.clear()
        before = self._taken_before.setdefault(target, taken)
        return taken > before + self._room // 8


def _close_all(sockets: dict[int, Socket]) -> None:
    for sock in sockets.values():
        sock.close()


def _is_numeric(family: int, host: str) -> bool:
    """Whether *host* is an address, and not a name: looking one up takes a native thread, for nothing."""
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return True
