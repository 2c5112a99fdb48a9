"""Datagrams on sockets: the greenlet that receives for a listener, and what sends them, from its socket or others."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import finalize

from gevent import sleep
from gevent import socket as gevent_socket
from gevent.event import Event
from greenlet import GreenletExit

from ngi_gevent import logs
from ngi_gevent.address import check_send_address, naming, unix_path
from ngi_gevent.binding import Binding, looked_up
from ngi_gevent.datagram import BaseDatagramListener
from ngi_gevent.dispatcher import ConnectionGreenlet
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IUDPListener, documented_by
from ngi_gevent.threads import call_on

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IUDPHandler
    from ngi_gevent.listening import ListenerOwner

__all__ = ["DatagramListener", "DatagramSender"]

READ, WRITE = 1, 2  # what gevent's io watchers watch for

#: Datagrams that a listener takes before everybody else has a turn, however many more there are.
MOST_AT_ONCE = 32

#: Seconds without receiving after the system refused it, so that an error that stays does not keep everybody busy.
PAUSE = 0.1

#: Has the system tell how long a datagram was of which it gives only the beginning.  Elsewhere it tells as much as it
#: gives, which is one byte more than would be taken, and enough to know.
TELL_LENGTH = socket.MSG_TRUNC if sys.platform == "linux" else 0


@documented_by(IUDPListener)
class DatagramListener(BaseDatagramListener):
    """A listener for datagrams on a socket.  Made on its hub's thread, and outstanding until its greenlet is done.

    It waits in one single place, where only its watcher and ``close`` resume it.
    """

    def __init__(self, owner: ListenerOwner, hub: Any, address: Any, handler: IUDPHandler, buffer_size: int) -> None:
        super().__init__(owner, handler, buffer_size)
        self._hub = hub
        self._binding = Binding(address, socket.SOCK_DGRAM)
        self._socket = self._binding.socket
        try:
            self._socket.setblocking(False)
            self.address = self._socket.getsockname()
            self._buffer = memoryview(bytearray(buffer_size + 1))
            self._watcher = hub.loop.io(self._socket.fileno(), READ)
            logs.datagrams.info("receiving datagrams on %r", self.address)
        except BaseException:
            self._socket.close()
            self._binding.remove_file()
            raise
        self._sender = _ListenerSender(hub, self._socket, self._check_open)
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
        self._sender.stop_waiting()
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

    def send(self, address: Any, data: bytes) -> None:
        """Send *data* to *address*.  Blocks the greenlet to look up a name, and while the system takes no more.

        Raises ``OSError``, naming the address.
        """
        try:
            self._send_to_first(self._reachable(_targets(address)), data)
        except OSError as error:
            raise naming(error, address) from error

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

    # What a kind of sender adds.

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Those of *targets* that this sends to, at least one; raises ``OSError`` if there is none."""
        return targets

    def _send(self, family: int, target: Any, data: bytes) -> None:
        """Send to *target*, an address in the form that sockets of that *family* take."""
        raise NotImplementedError


class DatagramSender(_Sender):
    """The sockets from which datagrams are sent on one hub, one for each family, made when the first is sent."""

    def __init__(self) -> None:
        self._sockets: dict[int, Any] = {}
        # They are closed also if nobody does it: those of the default implementation at the end of the program.
        self._close_sockets = finalize(self, _close_all, self._sockets)

    def close(self) -> None:
        """Close the sockets; nothing can be sent any more."""
        self._close_sockets()

    def _send(self, family: int, target: Any, data: bytes) -> None:
        sock = self._socket(family)
        try:
            sock.sendto(data, target)
        except BlockingIOError:
            _send_when_possible(sock, target, data)

    def _socket(self, family: int) -> Any:
        if not self._close_sockets.alive:
            raise ImplementationClosed("this implementation was closed")
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = gevent_socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
        return sock


class _ListenerSender(_Sender):
    """Sends from the socket of a listener, whose close ends all waiting: else it would not free the address at once.

    *check_open* raises once the listener is closed.
    """

    def __init__(self, hub: Any, sock: Any, check_open: Callable[[], None]) -> None:
        self._hub = hub
        self._socket = sock
        self._check_open = check_open
        self._waiting: dict[Any, Event] = {}  # the watchers of those who wait, and what wakes them

    def stop_waiting(self) -> None:
        """The listener is closed: tell those who wait, and watch the socket no more."""
        for watcher, ready in self._waiting.items():
            watcher.stop()  # which libuv's does not do when it is closed
            watcher.close()
            ready.set()

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        self._check_open()  # it may have been closed during a look-up
        reachable = [(family, target) for family, target in targets if family == self._socket.family]
        if not reachable:
            here = self._socket.getsockname()
            raise OSError(errno.EAFNOSUPPORT, f"a listener on {here!r} sends to no address of another family")
        return reachable

    def _send(self, family: int, target: Any, data: bytes) -> None:
        while True:
            try:
                self._socket.sendto(data, target)
            except BlockingIOError:
                self._wait_for_room(family, target)
            else:
                return

    def _wait_for_room(self, family: int, target: Any) -> None:
        """Wait until the system seems to take one more: there is room for what is sent, and with a Unix receiver."""
        if family == socket.AF_UNIX:
            with _connected_to(target) as probe:
                self._wait_to_write(probe)
        self._wait_to_write(self._socket)

    def _wait_to_write(self, sock: Any) -> None:
        watcher = self._hub.loop.io(sock.fileno(), WRITE)
        ready = self._waiting[watcher] = Event()
        watcher.start(ready.set)
        try:
            ready.wait()
        finally:
            del self._waiting[watcher]
            watcher.close()
        self._check_open()


def _close_all(sockets: dict[int, Any]) -> None:
    for sock in sockets.values():
        sock.close()


def _targets(address: Any) -> list[tuple[int, Any]]:
    """The families and addresses, in the form that sockets take, at which *address* may be reached."""
    path = unix_path(address)
    if path is not None:
        return [(socket.AF_UNIX, path)]
    host, port = address[:2]
    if _is_numeric(socket.AF_INET, host):
        return [(socket.AF_INET, (host, port))]
    if _is_numeric(socket.AF_INET6, host):
        return [(socket.AF_INET6, address)]
    return [(family, target) for family, _, _, _, target in looked_up(host, port, socket.SOCK_DGRAM)]


def _is_numeric(family: int, host: str) -> bool:
    """Whether *host* is an address, and not a name: looking one up takes a native thread, for nothing."""
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return True


def _connected_to(path: str) -> Any:
    """A Unix socket that the system calls writable when its receiver has room again, whoever sends to it."""
    sock = gevent_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _send_when_possible(sock: Any, target: Any, data: bytes) -> None:
    """Send what the system did not take at once, waiting on a socket of this greenlet's own.

    So any number of greenlets can wait, and the shared socket can be closed meanwhile.  A Unix socket must be another
    one, and connected, to be told when its receiver has room again, whoever else does not receive what was sent.
    """
    with _connected_to(target) if sock.family == socket.AF_UNIX else sock.dup() as own:
        own.setblocking(False)
        while True:
            gevent_socket.wait_write(own.fileno())
            try:
                own.sendto(data, target)
            except BlockingIOError:
                continue
            return
