"""The implementation on gevent: connecting and listening on the hub of the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from socket import SOCK_DGRAM
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from gevent import get_hub
from greenlet import getcurrent

from ngi_gevent.core.address import (
    check_connect_address,
    check_has_file,
    check_listen_address,
    check_listen_addresses,
    check_local_address,
    check_send_address,
)
from ngi_gevent.core.checks import as_bytes, as_timeout, check_client_handler
from ngi_gevent.core.datagram import BUFFER_SIZE, check_datagram_handler, check_datagram_options
from ngi_gevent.core.limits import NO_LIMITS, Limits
from ngi_gevent.core.listening import check_listen_options
from ngi_gevent.core.options import LINGER_TIMEOUT, ConnectionOptions
from ngi_gevent.core.output import OUTPUT_LIMIT
from ngi_gevent.core.service import takes_service
from ngi_gevent.errors import Deadlock, ImplementationClosed, Timeout
from ngi_gevent.sockets import transport
from ngi_gevent.sockets.acceptor import default_max_connections
from ngi_gevent.sockets.connector import Connector
from ngi_gevent.sockets.crowd import Crowd
from ngi_gevent.sockets.datagram_socket import DatagramListener
from ngi_gevent.sockets.destination import Destination
from ngi_gevent.sockets.dispatcher import current_connection
from ngi_gevent.sockets.hub_registry import HubRegistry, log_and_interrupt, on_its_hub
from ngi_gevent.sockets.listener import BACKLOG, StreamListener
from ngi_gevent.sockets.network import Network

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self, Unpack

    from ngi_gevent.core.registry import OnError
    from ngi_gevent.interfaces import (
        Address,
        Data,
        IClientConnectHandler,
        IServer,
        IUDPHandler,
        KeepAlive,
        PeerAddress,
        ProxyNetworks,
        UDPListenOptions,
    )

__all__ = ["Implementation"]

Result = TypeVar("Result")


class Implementation:
    """An implementation on sockets, on the hub of the calling thread.

    Greenlets of that thread serve the connections whenever it waits on gevent: in ``wait()``, in ``gevent.sleep``, or
    in a monkey-patched function.  The implementation does not keep a program running.  The logger
    ``ngi_gevent.connection`` logs exceptions in handlers.  At the end of a ``with`` statement, it closes, and waits
    until connections that the application has closed have delivered, as long as peers take some output every 30
    seconds.

    Several threads can use one implementation, each with its own hub.  Its connections and listeners can be used on any
    thread while their hub runs.  After ``close()``, other methods raise :class:`~ngi_gevent.ImplementationClosed`.
    """

    #: Called with the exceptions of handlers.
    _on_error: OnError = staticmethod(log_and_interrupt)

    def __init__(self) -> None:
        self._network = Network()
        self._closed = False
        # Weak, so that this does not keep a hub that its thread has given up.  Its registered items keep it.
        self._on_hub: WeakKeyDictionary[Any, HubRegistry] = WeakKeyDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        hub = get_hub()
        registry = self._on_hub.get(hub)
        # In a callback of one of its connections, or on the hub itself, the wait could not end.
        if registry is not None and not registry.includes(current_connection()) and getcurrent() is not hub:
            registry.wait_for_delivery()

    @on_its_hub
    def connect(
        self,
        address: PeerAddress,
        handler: IClientConnectHandler,
        *,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | None = transport.CONNECT_TIMEOUT,
        idle_timeout: float | None = None,
        output_limit: int = OUTPUT_LIMIT,
        keep_alive: KeepAlive = True,
        linger_timeout: float | None = LINGER_TIMEOUT,
        local_address: tuple[str, int] | tuple[str, int, int, int] | None = None,
        proxy_header: bytes | None = None,
    ) -> None:
        """Start a connection attempt to *address*.

        Never blocks.  The attempt has its own greenlet, which calls ``connected`` or ``failed_connect`` of *handler*.
        If the host has several addresses, they are tried in turn, IPv6 and IPv4 alternating, within *timeout* (RFC
        8305).  If all of them fail, the reason is an ``OSError`` whose message lists them.

        :param address: ``(host, port)``, or a Unix socket's path or abstract name
            (:data:`~ngi_gevent.interfaces.PeerAddress`).
        :param ssl_context: any ``ssl.SSLContext`` for clients, to use TLS.  If the handshake fails, ``failed_connect``
            gets the ``ssl.SSLError``; for a certificate that is not trusted, or belongs to another server, an
            ``ssl.SSLCertVerificationError``.
        :param server_hostname: the name to send, and to find in the certificate; by default, the host of *address*.
            A trailing dot and a scope are left out.  ``''`` sends no name; the context must then not check the name.
        :param timeout: seconds for the look-up of the name, the connection and the handshake together; None for the
            limits of the kernel only.  After that, ``failed_connect`` gets a :class:`~ngi_gevent.ConnectionTimeout`.
        :param idle_timeout: as for ``listener``; the same for *output_limit*, *keep_alive* and *linger_timeout*.
        :param local_address: ``(host, port)`` of this side; port 0 picks a port.  By default, the kernel picks both.
        :param proxy_header: a header of the PROXY protocol to send before anything else, also before TLS; see
            :func:`ngi_gevent.proxy_protocol.header`.
        :raises TypeError: an argument has the wrong type.
        :raises ValueError: an argument cannot be used.
        """
        check_connect_address(address)
        check_client_handler(handler)
        check_local_address(local_address, address)
        timeout = as_timeout(timeout)
        options = ConnectionOptions.checked(idle_timeout, output_limit, keep_alive, linger_timeout)
        make_connection = transport.client_factory(
            transport.host_of(address), options, ssl_context, server_hostname, proxy_header
        )
        hub, registry = self._registry_here()
        destination = Destination(self._network, address, local_address, keep_alive)
        registry.add(Connector(registry, hub, destination, handler, timeout, make_connection))

    @on_its_hub
    @takes_service
    def listener(
        self,
        address: Address | list[Any],
        server: IServer,
        *,
        backlog: int = BACKLOG,
        max_connections: int | None = None,
        limits: Limits = NO_LIMITS,
        slow_callback: float | None = None,
        idle_timeout: float | None = None,
        output_limit: int = OUTPUT_LIMIT,
        reuse_port: bool = False,
        dual_stack: bool = False,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        keep_alive: KeepAlive = True,
        linger_timeout: float | None = LINGER_TIMEOUT,
        ssl_context: SSLContext | None = None,
        handshake_timeout: float | None = transport.HANDSHAKE_TIMEOUT,
        proxy_protocol: ProxyNetworks | None = None,
    ) -> StreamListener:
        """Listen on *address*, and call *server* with each connection.

        Blocks only to look up the name of a host, and for up to 1 second while another process binds a Unix socket in
        the same directory.  On the hub of the calling thread, each connection has its own greenlet, which runs the
        server and the handlers.  With :class:`Threaded`, this is the hub of the implementation's thread.

        :param address: ``(host, port)``, where port 0 picks a free port; a Unix socket's path or abstract name
            (:data:`~ngi_gevent.interfaces.PeerAddress`); None for a free port on the loopback interface; or a bound
            socket, which then belongs to the listener.  A list of addresses, or a host name with several, makes one
            listener on all of them.  Port 0 then picks one port for all.
        :param backlog: connections that the kernel queues until they are accepted.
        :param max_connections: open connections at which accepting pauses.  Until a connection is gone, the kernel
            queues new ones, and the logger ``ngi_gevent.listener`` reports it.  The default is 90% of the descriptors
            that this process can open, and at least 32 fewer than all; handlers can open the rest.
        :param limits: :class:`~ngi_gevent.Limits` on crowds; by default, there are none.
        :param slow_callback: seconds that a callback can keep the hub busy before the logger ``ngi_gevent.listener``
            names it.  This uses a native thread.  None, the default, disables it.
        :param idle_timeout: seconds without data before the connection is closed, with a
            :class:`~ngi_gevent.Timeout` as the reason.  While output waits for the peer, time always counts.
            Otherwise, it does not count while a callback or an iterable runs, reading is paused, no handler is set, or
            input has ended.  It does count while other greenlets and threads work.  By default there is no limit,
            because some protocols are normally silent.
        :param output_limit: bytes of output that can be pending for one peer.  One more write resets the connection,
            with a :class:`~ngi_gevent.LimitExceeded` as the reason.
        :param reuse_port: whether other processes can listen on the same port; the kernel then distributes connections.
        :param dual_stack: whether ``::`` accepts IPv4 connections, too.  Their ``peer_address`` has a host such as
            ``'::ffff:192.0.2.1'``.
        :param mode: the permissions of the file of a Unix socket, such as ``0o660``.  The default depends on the umask
            of the process.  Mode and owner are set before a client can connect.
        :param owner: the user and group of that file, as a pair of ids; -1 changes nothing.  By default, the process's.
        :param keep_alive: whether the kernel probes silent peers over TCP, and ends connections without an answer; or
            ``(idle, interval, count)``: seconds of silence before the first probe, seconds between two probes, and the
            number of probes without an answer.  True uses the kernel's values, which are 2 hours, 75 and 9 on Linux.
        :param linger_timeout: seconds without input after which a closed connection ends, once it has delivered
            everything.  The peer can end it earlier.  Input that arrives is discarded, for 30 seconds at most; None
            waits for all 30 seconds.  A peer that is then still sending can lose the last output.
        :param ssl_context: any ``ssl.SSLContext`` for servers, to use TLS.  *server* is called after the handshake.
            The logger ``ngi_gevent.connection`` logs a failed handshake at level INFO.  During the handshake, a
            connection is not among ``connections()``.  ``close`` ends it, and ``close_wait`` waits for it.
        :param handshake_timeout: seconds for the PROXY header and the TLS handshake together; None for no limit.
        :param proxy_protocol: the load balancers and other proxies that send a PROXY header, version 1 or 2, before
            anything else: networks such as ``'10.0.0.0/8'``, and ``'unix'`` for peers on Unix sockets.  Then
            ``peer_address`` is the client's address.  Other connections are closed, with a log entry of
            ``ngi_gevent.connection`` at level INFO.  By default, headers are not expected.
        :raises TypeError: an argument has the wrong type.
        :raises ValueError: an argument cannot be used.
        :raises OSError: the kernel refuses the address, which the message names.
        """
        check_listen_options(backlog, max_connections, limits, slow_callback, reuse_port, dual_stack, mode, owner)
        addresses = check_listen_addresses(address, dual_stack, mode, owner)
        options = ConnectionOptions.checked(idle_timeout, output_limit, keep_alive, linger_timeout)
        crowd = Crowd(limits, is_behind_proxies=proxy_protocol is not None)
        make_connection = transport.server_factory(options, ssl_context, handshake_timeout, proxy_protocol, crowd)
        registry = self._registry_here()[1]
        listener = StreamListener(
            *(self._network, registry, self.connect, addresses, server, crowd, as_timeout(slow_callback)),
            backlog=backlog,
            max_connections=default_max_connections(self._network) if max_connections is None else max_connections,
            bind=(reuse_port, dual_stack, mode, owner),
            keep_alive=keep_alive,
            make_connection=make_connection,
        )
        self._check_still_open(listener)
        registry.add(listener)
        return listener

    @on_its_hub
    def udp(self, address: PeerAddress, data: Data) -> None:
        """Send *data* to *address* as one datagram, from a socket that all datagrams of this implementation share.

        Blocks the calling greenlet while a name is looked up, each time, and for up to 1 second until the kernel takes
        the datagram.  After that, the datagram is dropped, with a warning.  To answer a datagram, and for Unix sockets,
        see :meth:`ngi_gevent.interfaces.IUDPListener.send`.

        :param address: as for ``connect``.
        :raises TypeError: an argument has the wrong type.
        :raises ValueError: *address* cannot be used.
        :raises OSError: the name is not found, or the kernel refuses the datagram; the message names the address.
        """
        check_send_address(address)
        data = as_bytes(data)
        self._registry_here()[1].sender.send(address, data)

    @on_its_hub
    def udp_listener(
        self,
        address: Address,
        handler: IUDPHandler,
        buffer_size: int = BUFFER_SIZE,
        **options: Unpack[UDPListenOptions],
    ) -> DatagramListener:
        """Receive datagrams on *address*, and call *handler* with each, one at a time and in order.

        Blocks as ``listener`` does.  The listener has its own greenlet for *handler*, on the hub of the calling thread.
        With :class:`Threaded`, this is the hub of the implementation's thread.

        :param address: as for ``listener``, but only one.  A bound socket must be a datagram socket.  If a host name
            has several addresses, the first possible one is used, IPv4 first.
        :param buffer_size: bytes of the longest datagram.  A longer one is dropped, and the logger
            ``ngi_gevent.datagram`` logs it.  The default is UDP's maximum; Unix sockets can send more.
        :param reuse_port: whether other sockets can receive on the same port; the kernel chooses by the sender.
        :param broadcast: whether the listener's ``send`` can send to broadcast addresses.
        :param mode: as for ``listener``.  The same applies to *owner*.
        :raises TypeError: an argument has the wrong type.
        :raises ValueError: an argument cannot be used.
        :raises OSError: the kernel refuses the address, which the message names.
        """
        check_listen_address(address, SOCK_DGRAM)
        check_datagram_handler(handler)
        check_datagram_options(buffer_size, **options)
        check_has_file([address], options.get("mode"), options.get("owner"))
        hub, registry = self._registry_here()
        listener = DatagramListener(self._network, registry, hub, address, handler, buffer_size, **options)
        self._check_still_open(listener)
        registry.add(listener)
        return listener

    def wait(self, timeout: float | None = None) -> None:
        """Serve until this thread's hub has no connection attempt, connection or listener left.

        Blocks the calling greenlet, while the other greenlets of this thread run.  After ``close()``, returns once the
        output of all closed connections is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: one of these is still left after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """
        timeout = as_timeout(timeout)
        registry = self._on_hub.get(get_hub())
        if registry is None:
            return
        if registry.includes(current_connection()):
            raise Deadlock("wait cannot end in a callback of a connection it waits for; use listener.close(callback)")
        if not registry.wait(timeout):
            raise Timeout(f"still pending after {timeout} seconds: {registry}")

    def close(self) -> None:
        """Close all listeners, end all connections, and cancel all connection attempts.

        Never blocks.  Open connections end with the reason ``'stopped'``, and so do connection attempts.  Connections
        that the application has closed before finish delivering while their hub runs; ``wait()`` waits for that.  After
        ``close()``, other methods raise :class:`~ngi_gevent.ImplementationClosed`.  Closing again is harmless.
        """
        for registry in self._registries():
            registry.expect_stop()
        self._closed = True
        for registry in self._registries():
            if registry.mailbox.is_here():
                registry.stop()
            else:
                registry.mailbox.call_soon(registry.stop)

    def _registries(self) -> list[HubRegistry]:
        # Copied in one step, because other threads add to it, and the garbage collector removes from it.
        references = self._on_hub.keyrefs()
        return [self._on_hub[hub] for reference in references if (hub := reference()) is not None]

    def _call(self, function: Callable[[], Result]) -> Result:
        return function()

    def _check_open(self) -> None:
        if self._closed:
            raise ImplementationClosed(f"this {type(self).__name__} was closed; create another")

    def _check_still_open(self, listener: StreamListener | DatagramListener) -> None:
        """Close *listener* if the implementation was closed while the name was looked up."""
        if self._closed:
            listener.close()
            self._check_open()

    def _make_registry(self) -> HubRegistry:
        return HubRegistry(self._network, self._on_error)

    def _registry_here(self) -> tuple[Any, HubRegistry]:
        """Return the hub of the calling thread, and its registry."""
        self._check_open()
        hub = get_hub()
        registry = self._on_hub.get(hub)
        if registry is None or registry.mailbox.is_of_parent:
            registry = self._on_hub[hub] = self._make_registry()
            self._check_open()  # because a close() at the same time may not have found this hub
        return hub, registry
