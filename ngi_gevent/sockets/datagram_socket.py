"""UDP listeners on sockets, and senders of datagrams.  They serve Unix datagram sockets, too."""

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
from ngi_gevent.core.address import THIS_HOST, check_send_address, unix_path, with_address
from ngi_gevent.core.datagram import BaseDatagramListener, log_datagram_refusal
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IUDPListener, documented_by
from ngi_gevent.sockets.binding import BindOptions, bind_one, ipv4_first
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher, current_connection

if TYPE_CHECKING:
    from ngi_gevent.core.listening import ListenerOwner
    from ngi_gevent.interfaces import IUDPHandler
    from ngi_gevent.sockets.network import Network, Socket

__all__ = ["DatagramListener", "DatagramSender"]

READ = 1  # the event for gevent's io watchers

#: Datagrams that a listener receives before other greenlets get a turn.
MOST_AT_ONCE = 32

#: Seconds to pause after receiving failed.  Otherwise, a permanent error would keep the processor busy.
PAUSE = 0.1

#: Seconds until a datagram that the kernel does not accept is dropped.
SEND_TIMEOUT = 1.0

#: Seconds before sending is tried again.  They double with each attempt, up to the second.
FIRST_RETRY, LAST_RETRY = 0.001, 0.1

#: Receivers that a listener records while its socket's send buffer is half full.
MOST_RECEIVERS = 1024

#: The flag with which Linux returns the real length of a truncated datagram.  Other systems return the buffer's length,
#: which is one byte more than ``buffer_size``, and shows that the datagram is too long.
REAL_LENGTH = socket.MSG_TRUNC if sys.platform == "linux" else 0


@documented_by(IUDPListener)
class DatagramListener(BaseDatagramListener):
    """A UDP listener on a socket.  Made on its hub's thread, and registered until its greenlet has ended.

    The greenlet waits in a single place, ``_wait``, where only the watcher and ``close`` resume it.
    """

    def __init__(
        self,
        network: Network,
        registry: ListenerOwner,
        hub: Any,
        address: Any,
        handler: IUDPHandler,
        buffer_size: int,
        *,
        reuse_port: bool = False,
        broadcast: bool = False,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(registry, handler, buffer_size)
        self._hub = hub
        self._mailbox = Dispatcher.current().mailbox
        options = BindOptions(socket.SOCK_DGRAM, reuse_port=reuse_port, mode=mode, owner=owner)
        with log_datagram_refusal(address):
            self._binding = bind_one(network, address, options)
        self._socket = self._binding.socket
        try:
            if broadcast:
                network.allow_broadcast(self._socket)
            self.address = self._socket.getsockname()
            self._buffer = memoryview(bytearray(buffer_size + 1))
            self._watcher = hub.loop.io(self._socket.fileno(), READ)
            logs.datagrams.info("receiving datagrams on %r", self.address)
        except BaseException:
            self._binding.close()
            raise
        self._sender = _ListenerSender(network, self._socket, self._check_open)
        self._open = True
        self._waiting = False
        self._failed = logs.RateLimit(1)
        self._greenlet = ConnectionGreenlet(self.run, hub, self)
        hub.loop.run_callback(self._greenlet.switch)

    def close(self) -> None:
        try:
            self._mailbox.call(super().close)
        except ImplementationClosed:
            if self._open:
                raise

    def _check_send_address(self, address: Any) -> None:
        check_send_address(address)

    def _send(self, address: Any, data: bytes) -> None:
        self._mailbox.call(self._sender.send, address, data)

    def run(self) -> None:
        """The body of the greenlet, which makes all callbacks."""
        while self._open:
            try:
                self._wait()
                self._receive()
            except GreenletExit:  # the greenlet was killed in _wait
                self.close()
            except BaseException as error:  # raised in _wait, by a gevent.Timeout that a handler left open, for example
                self._owner.handler_raised(self.address, "receiving", error, self._log_interrupted)
        self._owner.forget(self)

    def _log_interrupted(self, address: Any, where: str, error: BaseException, *_: int) -> None:
        logs.datagrams.error("UDP listener on %r was interrupted, and continues", address, exc_info=error)

    def _wait(self) -> None:
        """Wait for a datagram.  Other greenlets get a turn even if there is one already."""
        self._watcher.start(self._greenlet.switch)
        self._waiting = True
        try:
            self._hub.switch()
        finally:
            self._waiting = False
            if self._open:
                self._watcher.stop()

    def _receive(self) -> None:
        """Receive queued datagrams, up to ``MOST_AT_ONCE``."""
        for _ in range(MOST_AT_ONCE):
            if not self._open:
                return
            try:
                length, sender = self._socket.recvfrom_into(self._buffer, 0, REAL_LENGTH)
            except BlockingIOError:
                return
            except OSError as error:
                # Most likely, an ICMP error for a datagram that was sent from this socket.
                self._log_failed(error)
                sleep(PAUSE)
                return
            self._take(sender, length, self._buffer[:length])

    def _log_failed(self, error: OSError) -> None:
        logs.datagrams.warning(
            "UDP listener on %r failed to receive, and continues: %s", self.address, error.strerror, limit=self._failed
        )

    def _stop_receiving(self) -> None:
        self._watcher.close()
        self._binding.close()
        if self._waiting:
            self._hub.loop.run_callback(self._end)
            self._owner.forget(self)
        logs.datagrams.info("no longer receiving datagrams on %r", self.address)

    def leave_to_parent(self) -> None:
        """Count as closed, in a forked child.  Only closes the descriptor."""
        self._open = False
        self._socket.close()
        self._watcher.close()

    def _end(self) -> None:
        if self._waiting:
            self._greenlet.switch()


class _Sender:
    """A sender of datagrams to addresses in the form that applications use."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._dropped = logs.RateLimit(1)

    def send(self, address: Any, data: bytes) -> None:
        """Send *data* to *address*.

        Blocks to look up a name, and up to ``SEND_TIMEOUT`` seconds until the kernel accepts the datagram.

        :raises OSError: the name was not found, or the kernel refused.  The error names the address.
        """
        try:
            self._send_to_first(self._reachable(self._targets(address)), data)
        except OSError as error:
            raise with_address(error, address) from error

    def _send_to_first(self, targets: list[tuple[int, Any]], data: bytes) -> None:
        """Send to the first of *targets* that the kernel does not refuse."""
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
        """Send to *target*, a socket address of *family*.  Drop the datagram if the kernel does not take it in time.

        A Unix receiver decides when there is room again.  A handler does not wait for it, because the listener could
        not answer other peers until then.
        """
        in_handler = isinstance(current_connection(), DatagramListener)
        timeout = 0.0 if family == socket.AF_UNIX and in_handler else SEND_TIMEOUT
        waited, pause = 0.0, FIRST_RETRY
        while True:
            try:
                self._try(family, target, data)
            except BlockingIOError as error:
                if waited >= timeout:
                    self._drop(target, error)
                    return
            except PermissionError as error:
                if family != socket.AF_UNIX or error.errno != errno.EPERM:
                    raise
                # The receiver has connected its socket to another address.  Over UDP, there would be no error.
                self._drop(target, error)
                return
            else:
                return
            sleep(pause)
            waited += pause
            pause = min(2 * pause, LAST_RETRY)

    def _drop(self, target: Any, error: OSError) -> None:
        logs.datagrams.warning("datagram to %r dropped: %s", target, error.strerror, limit=self._dropped)

    def _targets(self, address: Any) -> list[tuple[int, Any]]:
        """Return the families in which *address* can be reached, each with the address for its sockets."""
        path = unix_path(address)
        if path is not None:
            return [(socket.AF_UNIX, path)]
        host, port = address[0] or THIS_HOST, address[1]
        if _is_numeric(socket.AF_INET, host):
            return [(socket.AF_INET, (host, port))]
        if _is_numeric(socket.AF_INET6, host):
            return [(socket.AF_INET6, address)]
        resolved = self._network.resolve(host, port, socket.SOCK_DGRAM)
        return [(family, target) for family, _, _, _, target in ipv4_first(resolved)]

    # Implemented by each kind of sender.

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Return the *targets* that this sender can reach.  Raise ``OSError`` if there are none."""
        return targets

    def _try(self, family: int, target: Any, data: bytes) -> None:
        """Send without blocking.  Raise ``BlockingIOError`` if there is no room."""
        raise NotImplementedError


class DatagramSender(_Sender):
    """The sockets of ``udp`` on one hub: one for each family, made with the first datagram."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._sockets: dict[int, Socket] = {}
        # The default implementation is never closed.  This closes its sockets when the program ends.
        self._close_sockets = finalize(self, _close_all, self._sockets)

    def close(self) -> None:
        """Close the sockets.  After that, ``send`` raises ``ImplementationClosed``."""
        self._close_sockets()

    def _try(self, family: int, target: Any, data: bytes) -> None:
        try:
            self._socket(family).sendto(data, target)
        except BlockingIOError:
            if family != socket.AF_UNIX:
                raise
            # Datagrams that other receivers have not received may fill the shared socket's buffer.
            with closing(self._network.make_socket(family, socket.SOCK_DGRAM)) as own:
                own.sendto(data, target)

    def _socket(self, family: int) -> Socket:
        if not self._close_sockets.alive:
            raise ImplementationClosed("the implementation was closed; create another")
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = self._network.make_socket(family, socket.SOCK_DGRAM)
        return sock


class _ListenerSender(_Sender):
    """A sender that uses a listener's socket.  *check_open* raises if the listener is closed."""

    def __init__(self, network: Network, sock: Socket, check_open: Callable[[], None]) -> None:
        super().__init__(network)
        self._socket = sock
        self._check_open = check_open
        self._room: int = network.send_buffer_size(sock)
        #: For each receiver, the bytes in use at the first datagram to it after the buffer became half full.
        self._used_before: dict[Any, int] = {}

    def _reachable(self, targets: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        self._check_open()  # the listener may have been closed during a look-up
        reachable = [(family, target) for family, target in targets if family == self._socket.family]
        if not reachable:
            here = self._socket.getsockname()
            raise OSError(errno.EAFNOSUPPORT, f"a UDP listener sends only to its own address family; it is on {here!r}")
        return reachable

    def _try(self, family: int, target: Any, data: bytes) -> None:
        self._check_open()  # the listener may have been closed since the last attempt
        if family == socket.AF_UNIX and self._fills_buffer(target):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._socket.sendto(data, target)

    def _fills_buffer(self, target: Any) -> bool:
        """Return whether datagrams that *target* does not receive already fill too much of the buffer.

        Linux keeps a datagram in its sender's buffer until it is received.  A receiver that is connected to the sender
        can leave any number unreceived.  Without a limit, the listener could then not send to other peers.  Once half
        of the buffer is in use, each receiver can add an eighth.
        """
        taken = self._network.queued_output(self._socket)
        if taken <= self._room // 2:
            self._used_before.clear()
            return False
        if len(self._used_before) >= MOST_RECEIVERS:
            self._used_before.clear()
        before = self._used_before.setdefault(target, taken)
        return taken > before + self._room // 8


def _close_all(sockets: dict[int, Socket]) -> None:
    for sock in sockets.values():
        sock.close()


def _is_numeric(family: int, host: str) -> bool:
    """Return whether *host* is an address, so that no thread needs to look it up."""
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return True
