"""The implementation in memory: its addresses, and the listeners on them."""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Collection, Container, Hashable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.checks import as_bytes, as_timeout, check_client_handler, connect_delay_of
from ngi_gevent.core.datagram import (
    BUFFER_SIZE,
    check_datagram_handler,
    check_datagram_options,
    log_datagram_refusal,
)
from ngi_gevent.core.lifecycle import STOPPED
from ngi_gevent.core.limits import NO_LIMITS, Limits
from ngi_gevent.core.listening import check_listen_options, log_refusal
from ngi_gevent.core.options import LINGER_TIMEOUT, ConnectionOptions
from ngi_gevent.core.output import OUTPUT_LIMIT
from ngi_gevent.core.registry import log_attempt
from ngi_gevent.core.service import takes_service
from ngi_gevent.errors import Deadlock, ImplementationClosed, NGIError, Timeout, WouldWait
from ngi_gevent.sockets import transport
from ngi_gevent.sockets.crowd import Crowd
from ngi_gevent.testing.memory.attempts import DelayedAttempt
from ngi_gevent.testing.memory.datagram import DatagramListener, check_hashable, check_send_address, deliver
from ngi_gevent.testing.memory.listening import Listener
from ngi_gevent.testing.memory.turns import CANNOT_WAIT, MemoryRegistry, Turns, raise_interrupts

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self, Unpack

    from ngi_gevent.core.registry import OnError
    from ngi_gevent.interfaces import (
        ConnectOptions,
        Data,
        IClientConnectHandler,
        IServer,
        IUDPHandler,
        KeepAlive,
        ProxyNetworks,
        UDPListenOptions,
    )
    from ngi_gevent.testing.memory.connection import Connection

__all__ = ["Implementation", "connect", "connectable", "default", "listener", "udp", "udp_listener", "wait"]

#: Failed attempts to one address in one outermost call, after which a client that reconnects forever is stopped.
MAX_RECONNECTS = 1000

#: The host in memory, for checking options that concern hosts.
HOST = "localhost"


class Implementation:
    """An implementation in memory, with its own addresses.  :mod:`ngi_gevent.testing` describes when callbacks run.

    An address is any hashable.  Exceptions in handlers are logged, as in all implementations.  But the call that led to
    the handler raises ``KeyboardInterrupt`` and ``SystemExit``.  As a context manager, the implementation closes at the
    end.
    """

    #: Called with the exceptions of handlers.
    _on_error: OnError = staticmethod(raise_interrupts)

    def __init__(self) -> None:
        self._closed = False
        self._turns = Turns()
        self._registry = self._make_registry()
        self._listeners: dict[Hashable, Listener] = {}
        self._datagram_listeners: dict[Hashable, DatagramListener] = {}
        self._datagram_sender: Hashable = None  # the address that ``udp`` sends from, once it is used
        self._connectable: dict[Hashable, deque[Connection]] = {}
        self._numbers = count(1)  # for new addresses
        self._failures: Counter[Hashable] = Counter()
        self._delayed: list[DelayedAttempt] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(
        self,
        address: Hashable,
        handler: IClientConnectHandler,
        client_address: Hashable = None,
        **options: Unpack[ConnectOptions],
    ) -> None:
        """Connect *handler* to the listener on *address*, or to a connection that ``connectable`` has prepared there.

        Never blocks.  Returns after all callbacks, unless this is called in a callback.  If the address has neither a
        listener nor a connection, ``failed_connect('no such server')`` is called.  A client that reconnects at each
        failure, or at each end, is stopped after a thousand times: the outermost call raises
        :class:`~ngi_gevent.NGIError`.

        The options are the same as on sockets, and all are checked.  Three have an effect in memory: *output_limit*,
        *proxy_header*, and *local_address*, which is any hashable here.

        :param client_address: the same as *local_address*.  ``listener.connect`` accepts this name, too.
        """
        self._connect_to(None, address, handler, client_address, **options)

    def _connect_to(
        self,
        listener: Listener | None,
        address: Hashable,
        handler: IClientConnectHandler,
        client_address: Any,
        *,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | None = None,
        local_address: Hashable = None,
        proxy_header: bytes | None = None,
        **options: Any,
    ) -> None:
        """Connect *handler* to *listener*, or to the listener that is on *address* when its turn comes."""
        as_timeout(timeout)
        checked = ConnectionOptions.checked(**options)
        transport.client_factory(HOST, checked, ssl_context, server_hostname, proxy_header)
        check_hashable(local_address)
        check_hashable(client_address)
        self._check_open()
        check_client_handler(handler)
        check_hashable(address)
        delay = connect_delay_of(handler)
        if self._turns.running and getattr(handler, "waits", False):
            raise WouldWait(CANNOT_WAIT)
        if client_address is None:
            client_address = self._new_address() if local_address is None else local_address
        if not self._turns.running:
            self._failures.clear()
        begin = partial(self._connect, listener, address, handler, client_address, checked.output_limit, proxy_header)
        if delay:
            attempt = DelayedAttempt(self._registry, address, begin, partial(self._fail, address, handler, STOPPED))
            self._delayed.append(attempt)
            connecting = getattr(handler, "connecting", None)
            if connecting is not None:
                connecting(attempt.stop)
            self._turns.queue(self._begin_delayed)
        else:
            self._turns.queue(begin)
        self._turns.run()

    @takes_service
    def listener(
        self,
        address: Hashable | list[Any],
        server: IServer,
        *,
        max_connections: int | None = None,
        limits: Limits = NO_LIMITS,
        slow_callback: float | None = None,
        idle_timeout: float | None = None,
        output_limit: int = OUTPUT_LIMIT,
        backlog: int = 0,
        reuse_port: bool = False,
        dual_stack: bool = False,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        keep_alive: KeepAlive = True,
        linger_timeout: float | None = LINGER_TIMEOUT,
        ssl_context: SSLContext | None = None,
        handshake_timeout: float | None = None,
        proxy_protocol: ProxyNetworks | None = None,
    ) -> Listener:
        """Listen on *address*, and pass each new connection to *server*.

        The options are the same as for listeners on sockets, and all are checked.  Three have an effect in memory:

        * *max_connections*, which is unlimited by default;
        * *output_limit*;
        * *proxy_protocol*, which trusts all clients, and also accepts one that connects without a *proxy_header*.

        Nothing is encrypted, and the ``ssl_object`` of connections is None.  No time passes:
        ``connection.test_close(Timeout(...))`` simulates the *idle_timeout*, or the end of a *max_lifetime*.
        *max_per_host* has no effect, since there are no hosts to count.

        :param address: any hashable, or None for a new address; or a list of these.
        :raises OSError: another listener has the address.
        """
        self._check_open()
        check_listen_options(backlog, max_connections, limits, slow_callback, reuse_port, dual_stack, mode, owner)
        options = ConnectionOptions.checked(idle_timeout, output_limit, keep_alive, linger_timeout)
        transport.server_factory(options, ssl_context, handshake_timeout, proxy_protocol, Crowd(limits))
        with log_refusal(address):
            addresses = self._free_addresses(address, self._listeners)
        listener = Listener(
            self._listeners,
            self._connect_to,
            self._registry,
            addresses,
            server,
            max_connections,
            output_limit,
            takes_headers=proxy_protocol is not None,
        )
        self._listeners.update(dict.fromkeys(addresses, listener))
        self._registry.add(listener)
        self._begin_delayed()
        self._turns.run()
        return listener

    def udp(self, address: Hashable, data: Data) -> None:
        """Send *data* to the UDP listener on *address*.  If there is no listener, the datagram is lost.

        Never blocks.  The datagram has been handled on return, unless this is called in a callback.  All datagrams sent
        by this method come from the same address.
        """
        check_send_address(address)
        data = as_bytes(data)
        self._check_open()
        if self._datagram_sender is None:
            self._datagram_sender = self._new_address()
        deliver(self._datagram_listeners, self._datagram_sender, address, data)

    def udp_listener(
        self,
        address: Hashable,
        handler: IUDPHandler,
        buffer_size: int = BUFFER_SIZE,
        **options: Unpack[UDPListenOptions],
    ) -> DatagramListener:
        """Listen for datagrams on *address*, and pass each to *handler*.

        As with the ports of TCP and UDP, a listener for connections can have the same address.  A datagram longer than
        *buffer_size* is dropped, with a warning in the logger ``ngi_gevent.datagram``.  The other options are the same
        as for listeners on sockets.  They are checked, and have no effect in memory.

        :param address: any hashable, or None for a new address.
        :raises OSError: another UDP listener has the address.
        """
        self._check_open()
        check_datagram_handler(handler)
        check_datagram_options(buffer_size, **options)
        with log_datagram_refusal(address):
            address = self._free_address(address, self._datagram_listeners)
        listener = DatagramListener(self._datagram_listeners, self._registry, address, handler, buffer_size)
        self._datagram_listeners[address] = listener
        self._registry.add(listener)
        return listener

    def connectable(self, address: Hashable, connection: Connection) -> None:
        """Prepare *connection* for the next ``connect`` to *address* that finds no listener."""
        check_hashable(address)
        self._connectable.setdefault(address, deque()).append(connection)
        self._begin_delayed()
        self._turns.run()

    def wait(self, timeout: float | None = None) -> None:
        """Raise :class:`~ngi_gevent.Timeout` if anything is pending, because waiting would not change that.

        :raises Deadlock: this is called in a callback.
        """
        as_timeout(timeout)
        if self._turns.current is not None:
            raise Deadlock("wait cannot end in a callback of a connection it waits for; use listener.close(callback)")
        if self._registry:
            raise Timeout(f"still pending, and nothing is left to end it: {self._registry}")

    def close(self) -> None:
        """Close all listeners and end all connections.  Later calls of other methods raise ``ImplementationClosed``."""
        self._closed = True
        self._registry.stop()

    def _connect(
        self,
        listener: Listener | None,
        address: Hashable,
        handler: IClientConnectHandler,
        client_address: Any,
        output_limit: int,
        proxy_header: bytes | None,
    ) -> None:
        listener = listener or self._listeners.get(address)
        prepared = self._connectable.get(address)
        if listener is not None and listener.accept(handler, address, client_address, output_limit, proxy_header):
            return
        if prepared:
            connection = prepared.popleft()
            connection.peer_address = connection.peer.local_address = address
            if proxy_header is not None:
                connection.write(proxy_header)
            connection.start(handler.connected, "connected")
            connection._take_turn()
            return
        if self._is_finite(address):
            self._fail(address, handler, "no such server")

    def _begin_delayed(self) -> None:
        """Begin the attempts that have waited for their addresses to accept connections."""
        delayed, self._delayed = self._delayed, []
        for attempt in delayed:
            accepts = attempt.address in self._listeners or self._connectable.get(attempt.address)
            if attempt.is_over or (accepts and self._is_finite(attempt.address)):
                attempt.begin()
            else:
                self._delayed.append(attempt)

    def _is_finite(self, address: Hashable) -> bool:
        """Count an attempt that fails, or that follows an end.  Return False if the client would reconnect forever."""
        self._failures[address] += 1
        if self._failures[address] > MAX_RECONNECTS:
            self._turns.error = NGIError(
                f"a client reconnected to {address!r} forever; connect again in a simulation, where time passes"
            )
        return self._failures[address] <= MAX_RECONNECTS

    def _fail(self, address: Hashable, handler: IClientConnectHandler, reason: str) -> None:
        try:
            handler.failed_connect(reason)
        except BaseException as error:
            self._registry.handler_raised(address, "failed_connect", error, log_attempt)

    def _make_registry(self) -> MemoryRegistry:
        return MemoryRegistry(self._turns, self._on_error)

    def _check_open(self) -> None:
        if self._closed:
            raise ImplementationClosed(f"this {type(self).__name__} was closed; create another")

    def _new_address(self) -> tuple[str, int]:
        return "in memory", next(self._numbers)

    def _free_addresses(self, address: Hashable | list[Any], listeners: Collection[Hashable]) -> tuple[Any, ...]:
        """Return the addresses to listen on: the items of a list, or *address* itself; each free, or new for None."""
        if not isinstance(address, list):
            return (self._free_address(address, listeners),)
        if not address:
            raise ValueError("a list of addresses to listen on must not be empty; got []")
        addresses: list[Hashable] = []
        for each in address:
            addresses.append(self._free_address(each, {*listeners, *addresses}))
        return tuple(addresses)

    def _free_address(self, address: Hashable, listeners: Container[Hashable]) -> Hashable:
        """Return *address*, or a new one for None.  Raise ``OSError`` if one of *listeners* has it."""
        check_hashable(address)
        if address is None:
            return self._new_address()
        if address in listeners:
            raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {address!r}")
        return address


#: The implementation that ``connect`` and the other functions of this package use.
default = Implementation()
connect = default.connect
connectable = default.connectable
listener = default.listener
udp = default.udp
udp_listener = default.udp_listener
wait = default.wait
