"""The interfaces between an application and an implementation, as protocols.

An **application** writes handlers: :class:`IConnectionHandler`, :class:`IServer`, :class:`IClientConnectHandler`,
:class:`IUDPHandler`.  An **implementation** owns sockets, buffers and greenlets, and calls the handlers.  Your classes
do not need to inherit from the protocols; a type checker compares their methods.

**Greenlets.**  All callbacks of a connection run on that connection's own greenlet.  So a callback can block (for
another request, a query, ``gevent.sleep``), and only its own connection waits.  The callbacks of one connection never
overlap.  A UDP listener has its own greenlet, too; its handler gets one datagram at a time.  In memory, a callback runs
on the caller's greenlet, and the callbacks that it causes are queued.

**Threads.**  You can use connections, listeners and implementations from any greenlet and any native thread, while the
hub that they live on runs.  Calls from one thread keep their order.  The arguments of a call from another native thread
are checked at once.  The call takes effect soon afterwards, on the connection's thread.  If the connection has ended by
then, output is dropped, as for any connection that breaks.

**Reasons.**  The reason why a connection ended is text if nothing went wrong: ``'end of input'`` (the peer finished) or
``'stopped'`` (the listener was closed).  Otherwise it is an exception.  ``str(reason)`` is suitable for a log in both
cases.  With TLS, an end that the peer did not announce is an ``ssl.SSLEOFError``, because data may be missing.  If the
context has ``ssl.OP_IGNORE_UNEXPECTED_EOF``, it is an ``'end of input'``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from ipaddress import IPv4Network, IPv6Network
    from ssl import SSLContext
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ngi_gevent.core.limits import Limits

__all__ = [
    "Address",
    "ConnectOptions",
    "Data",
    "IClientConnectHandler",
    "IConnection",
    "IConnectionHandler",
    "IImplementation",
    "IListener",
    "IServer",
    "IServerConnection",
    "IUDPHandler",
    "IUDPListener",
    "KeepAlive",
    "ListenOptions",
    "ListenerMetrics",
    "PeerAddress",
    "ProxyNetworks",
    "Reason",
    "UDPListenOptions",
    "documented_by",
]

_Class = TypeVar("_Class", bound=type)

Data: TypeAlias = "bytes | bytearray | memoryview"
Reason: TypeAlias = "str | BaseException"

#: The addresses to connect or send to, on sockets: a host and a port, which IPv6 sockets return with two more items; or
#: the path of a Unix socket, as text or a ``Path``.  An empty host is this host, ``127.0.0.1``.  On Linux, an address
#: can also be a Unix socket's abstract name, as text or bytes, which begins with a null byte.  It has no file, and
#: every process in the same network namespace can connect to it.  The ``address`` of its listener is bytes.
PeerAddress: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | str | bytes | os.PathLike[str]"

#: The addresses to listen on, on sockets.  None is a free port on the loopback interface.
Address: TypeAlias = "PeerAddress | _Socket | None"


class _Socket(Protocol):
    """A socket of the standard library or of gevent; these have no class in common."""

    def fileno(self) -> int: ...

    def getsockname(self) -> Any: ...


#: Whether the kernel probes silent peers; or the seconds of silence before the first probe, the seconds between two
#: probes, and the number of unanswered probes after which the connection breaks.
KeepAlive: TypeAlias = "bool | tuple[int, int, int]"


#: The proxies that may send PROXY headers: networks, as text such as ``'10.0.0.0/8'`` or as objects of ``ipaddress``;
#: and ``'unix'`` for all peers on Unix sockets.
ProxyNetworks: TypeAlias = "Collection[str | IPv4Network | IPv6Network]"


class ConnectOptions(TypedDict, total=False):
    """The options of each ``connect``; see :meth:`ngi_gevent.Implementation.connect`."""

    ssl_context: SSLContext | None
    server_hostname: str | None
    timeout: float | None
    idle_timeout: float | None
    output_limit: int
    keep_alive: KeepAlive
    linger_timeout: float | None
    local_address: Any
    proxy_header: bytes | None


class ListenOptions(TypedDict, total=False):
    """The options of each ``listener``; see :meth:`ngi_gevent.Implementation.listener`."""

    backlog: int
    max_connections: int | None
    limits: Limits
    slow_callback: float | None
    idle_timeout: float | None
    output_limit: int
    reuse_port: bool
    dual_stack: bool
    mode: int | None
    owner: tuple[int, int] | None
    keep_alive: KeepAlive
    linger_timeout: float | None
    ssl_context: SSLContext | None
    handshake_timeout: float | None
    proxy_protocol: ProxyNetworks | None


class UDPListenOptions(TypedDict, total=False):
    """The options of each ``udp_listener``; see :meth:`ngi_gevent.Implementation.udp_listener`."""

    reuse_port: bool
    broadcast: bool
    mode: int | None
    owner: tuple[int, int] | None


class IConnectionHandler(Protocol):
    """The handler of one connection.  Written by the application, called by the implementation.

    Three more methods are optional:

    ``handle_eof(connection)``
        The peer has finished sending, and all input has been delivered.  Called at most once.  The connection stays
        open for output: close it, or call ``write_eof``, when you have written the answer.  Without this method, the
        connection is closed once all output has been delivered, and ``handle_close`` gets ``'end of input'``.

    ``handle_close(connection, reason)``
        The connection ended, and the application did not close or abort it through this connection.  Called at most
        once, after all input; no callback follows.  The connection is false by then, and writing raises.

    ``handle_exception(connection, exception)``
        An iterable given to ``writelines`` raised, or yielded something that is not bytes.  All output before it is
        sent, and the connection stays open; the rest of that iterable is dropped.  Without this method, the connection
        is closed, and ``handle_close`` gets the exception.

    If a callback raises, the exception is logged with its traceback.  Unless the callback is ``handle_close``, the
    connection then closes once all output has been delivered, and ``handle_close`` gets the exception as the reason.

    One exception is not an error: the :class:`~ngi_gevent.ConnectionClosed` of this connection itself, raised because
    the connection had ended when the callback wrote to it.  It is logged at level DEBUG, no more input is delivered,
    and ``handle_close`` gets the reason of the end.
    """

    def handle_input(self, connection: Any, data: bytes, /) -> object:
        """Handle the next bytes from the peer.  They are never empty, and can be split anywhere.

        Runs on the connection's greenlet, and can block; further input waits until this returns.
        """


class IServer(Protocol):
    """A callable that sets the handler of each new connection.  Written by the application, called by a listener.

    It is often a class whose instances set themselves as the handler.
    """

    def __call__(self, connection: Any, /) -> object:
        """Take a new :class:`IServerConnection`, and usually set its handler.

        Runs on the connection's greenlet, and can block.  With TLS, the handshake has succeeded.  If this raises, the
        exception is logged, and this connection ends; the listener goes on.
        """


class IClientConnectHandler(Protocol):
    """The handler of one connection attempt.  Written by the application, called by ``connect``.

    Either ``connected`` or ``failed_connect`` is called, once.  If one of them raises, the exception is logged.  If it
    is ``connected``, the connection is also closed.

    One more method is optional: ``connecting(give_up)`` is called before ``connect`` returns, if connecting takes time.
    ``give_up()`` ends the attempt with ``failed_connect('stopped')``, unless the attempt has ended already.

    One attribute is optional, too: ``connect_delay``, the seconds before the attempt begins, 0 by default.  This time
    does not count for *timeout*.  In memory, no time passes: such an attempt begins as soon as something listens on its
    address.
    """

    def connected(self, connection: Any, /) -> object:
        """Take the connection, and usually set its handler.

        Runs on the connection's greenlet, and can block.
        """

    def failed_connect(self, reason: Any, /) -> object:
        """Handle the failure of the attempt.

        Runs on its own greenlet, can block, and can connect again.

        :param reason: an exception, or text.
        """


class IUDPHandler(Protocol):
    """A callable that handles datagrams, one at a time and in order.  Called by a UDP listener.

    It runs on the listener's greenlet, and can block.  In the meantime, the kernel queues datagrams as far as it has
    room, and drops the rest.  If it raises, the exception is logged with its traceback, and the listener goes on.
    """

    def __call__(self, address: Any, data: bytes, /) -> object:
        """Handle a whole datagram, which can be empty.

        :param address: the sender's address; None for an unbound Unix socket, which you cannot answer.
        """


def documented_by(interface: type) -> Callable[[_Class], _Class]:
    """Copy the docstrings of *interface* to the methods of a class that lack one.

    A decorator for classes that implement *interface*: implementations and adapters.
    """

    def document(implementer: _Class) -> _Class:
        for name, method in vars(interface).items():
            own = vars(implementer).get(name)
            if isinstance(own, FunctionType) and own.__doc__ is None:
                own.__doc__ = method.__doc__
        return implementer

    return document


@runtime_checkable
class IConnection(Protocol):
    """One end of a connection.  Made by an implementation, used by the application.

    ============================  =========================  ===================  =========
    state                         ``write``, ``writelines``  ``close()``          ``bool``
    ============================  =========================  ===================  =========
    open                          queue, and never block     -> closing           ``True``
    after ``write_eof()``         ``ConnectionClosed``       -> closing           ``True``
    closing: output drains        ``ConnectionClosed``       nothing              ``False``
    closed                        ``ConnectionClosed``       nothing              ``False``
    ============================  =========================  ===================  =========

    While it is open, any callback can run.  After the application's own ``close()`` or ``abort()``, none does.  After
    any other end, ``handle_close`` runs once, as the last callback.  Only ``drain`` blocks.
    """

    @property
    def peer_address(self) -> Any:
        """The address of the other end when the connection was made.  Readable after the close, too.

        Behind a proxy that sends PROXY headers (``proxy_protocol`` of a listener), the address of the proxy's client.
        """

    @property
    def local_address(self) -> Any:
        """The address of this end when the connection was made.  Readable after the close, too."""

    @property
    def proxy_address(self) -> Any:
        """The address of the proxy that sent a PROXY header; None without one.  Readable after the close, too.

        If the header does not name a client, for example in a health check by the proxy, this is the same as
        ``peer_address``.
        """

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        """The process, user and group ids of the peer of a Unix socket on Linux, when the connection was made.

        None for other connections.  On a server's side, the ids belong to the process that called ``connect``, which is
        the proxy if there is a ``proxy_address``.  On a client's side, they belong to the process that called
        ``listen``.  The kernel guarantees the ids, but that process may have ended, and another process may have the
        same id.  Readable after the close, too.
        """

    @property
    def ssl_object(self) -> Any:
        """The connection's ``ssl.SSLObject``; None without TLS.  Readable after the close, too.

        Use it only for queries: ``getpeercert()``, ``version()``, ``cipher()``, ``selected_alpn_protocol()``.  Call
        these on the connection's thread, and leave reading and writing to the connection.
        """

    def start_tls(
        self,
        ssl_context: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        timeout: float | None = ...,
    ) -> None:
        """Change the connection to TLS, and return after the handshake.

        Blocks the calling greenlet or native thread.  Earlier output goes first, in plaintext.  Later output, on any
        greenlet, is encrypted, and leaves after the handshake.  Input that was received but not delivered belongs to
        TLS, and does not reach a handler.  In a callback, the handshake begins at once; otherwise, it begins when the
        running callback has returned.  In memory, this only checks its arguments.

        :param ssl_context: an ``ssl.SSLContext``.
        :param server_side: whether this side is the server of the handshake.
        :param server_hostname: for the client's side, the name to expect in the server's certificate.
        :param timeout: seconds for the handshake, 10 by default; None for no limit.
        :raises ConnectionClosed: the connection has ended, the peer has finished sending, or the handshake failed.  A
            failed handshake is also logged, at level INFO, and ``handle_close`` gets the error.
        :raises RuntimeError: the connection has TLS already, this was called before, an iterable given to
            ``writelines`` is not exhausted, or a ``SansIO`` that was not detached is on the connection.  Nothing
            has changed in this case.
        :raises TypeError: *ssl_context* is not an ``ssl.SSLContext``, or *timeout* is not a number.
        :raises ValueError: the context cannot be used for this side, *server_hostname* is given for a server, or
            *timeout* is negative.
        """

    data: Any
    """The application's state for this connection, None at first.  The library never reads it.

    All adapters on a connection share it.  Readable and writable after the close, too.
    """

    def __bool__(self) -> bool:
        """Return whether the connection is open, so that ``write`` accepts data.

        False also when sending has failed because the peer is gone.  Input that had arrived before may still be
        delivered, and then the end.
        """

    def set_handler(self, handler: IConnectionHandler, /) -> None:
        """Set the handler of the connection, or replace it.  Never blocks.

        Input and the end of the connection are held until there is a handler.  If you call this again, unread input
        goes to the new handler; use this to change protocols.

        :raises TypeError: *handler* has no ``handle_input`` method.
        """

    def write(self, data: Data, /) -> None:
        """Queue *data* for sending.  Never blocks.

        Mutable data is copied.  Small writes made in one callback are sent together when it returns or blocks.

        :raises TypeError: *data* is not bytes, a bytearray or a memoryview.
        :raises ConnectionClosed: the connection is closing or closed.
        """

    def writelines(self, data: Iterable[Data], /) -> None:
        """Queue the pieces that *data* yields for sending.  Never blocks.

        The connection pulls from *data* only as the peer takes output, never far ahead.  *data* can block, because it
        runs on its own greenlet.  Output keeps the order of the calls of ``write`` and ``writelines``.  An empty piece
        sends nothing; the connection pulls the next one when the peer has taken all output before it.

        :raises TypeError: *data* is not an iterable of bytes objects, or is text or a single bytes object.
        :raises ConnectionClosed: the connection is closing or closed.
        """

    @property
    def output_pending(self) -> int:
        """The bytes of output that the kernel, or in memory the peer, has not taken yet.

        Output that an iterable has not yielded yet does not count.  After the close, this is 0.
        """

    def drain(self, timeout: float | None = None, *, below: int = ...) -> None:
        """Wait until less than *below* bytes of output are pending.

        Blocks the calling greenlet, or a native thread without a hub.  If less is pending already, returns at once.  In
        a callback, this holds up the connection's input, so two ends that both drain without reading need a *timeout*.
        Can be called after ``close()``.

        :param timeout: seconds to wait; None for no limit.
        :param below: bytes, at least 1; by default the low-water mark, 16 KiB.  With 1, this waits until the kernel has
            all output, and until the iterables given to ``writelines`` are exhausted.
        :raises Timeout: *below* bytes or more were pending after *timeout* seconds.  They stay pending.
        :raises ConnectionClosed: output of this connection was dropped, now or earlier, because the connection broke or
            was aborted, for example.
        :raises WouldWait: in memory, called in a callback, and more is pending.
        :raises TypeError: *timeout* is not a number, or *below* is not an int.
        :raises ValueError: *timeout* is negative, or *below* is less than 1.
        """

    def write_eof(self) -> None:
        """End the output.  After all output, the peer sees the end of its input.

        Never blocks.  Input still arrives.  After this, ``write`` and ``writelines`` raise ``ConnectionClosed``.  Once
        the input has ended, too, the connection closes by itself.  Calling this again, or after the connection has
        ended, is harmless.  With TLS, this sends a close_notify, which a peer with TLS 1.2 may treat as the end of both
        directions.
        """

    @property
    def input_ended(self) -> bool:
        """Whether the peer has finished sending, and all its input has been delivered.

        Readable after the close, too.
        """

    def pause_reading(self) -> None:
        """Stop delivering input, its end, and the records of adapters.

        Never blocks.  The peer can send only as much as the kernel buffers.  Pausing is a flag, not a count, and
        ``set_handler`` does not change it.  A paused connection still ends if it breaks, is stopped, or exceeds a
        limit.  A break is noticed within about a second.  If you call this on another thread, it takes effect soon, so
        a callback may still begin.  After the connection has ended, this does nothing.
        """

    def resume_reading(self) -> None:
        """Deliver input again, after ``pause_reading``.

        Never blocks.  If reading is not paused, or the connection has ended, this does nothing.
        """

    def while_open(self) -> AbstractContextManager[None]:
        """Return a context manager that interrupts its block when the connection ends::

            with connection.while_open():
                value = queue.get()  # waits for long
            connection.write(value)

        The block is interrupted where it waits, within about a second after the connection broke or was ended on this
        side.  Unless the handler has ``handle_eof``, the same happens after the peer finished sending: over TCP, a peer
        that is gone and one that has finished look the same until this side sends something.  Leaving the block then
        raises ``ConnectionClosed``.  In a callback, you do not need to handle that; ``handle_close`` gets the reason.

        Only the greenlet that entered the block is interrupted, and only in the block.  ``except Exception`` in it does
        not catch the interruption.  In memory, a callback cannot wait, so this interrupts only other greenlets.

        :raises ConnectionClosed: on entering, the connection has ended.
        :raises RuntimeError: on entering, the caller is not on the connection's native thread.
        """

    def close(self) -> None:
        """Close the connection once everything written has been delivered.

        Never blocks.  No further handler callback runs.  The peer receives all pending output before it sees the end
        of the stream.  Calling this again, or after the connection has ended, is harmless.
        """

    def fail(self, reason: Reason, /) -> None:
        """Close the connection for *reason*, as if the application had not asked for it.

        Never blocks.  All output is delivered, input that has arrived is dropped, and ``handle_close`` gets *reason*.
        Adapters and limits use this.  If the connection has ended already, this does nothing.

        :raises TypeError: *reason* is neither text nor an exception.
        """

    def abort(self) -> None:
        """End the connection now, and drop pending output.

        Never blocks.  No further handler callback runs.  The peer sees a reset if the connection supports that, as TCP
        does.  This also ends a connection that is still closing.
        """

    def when_closed(self, callback: Callable[[], object], /) -> None:
        """Call *callback* once the connection is closed, all output is delivered, and the last callback is over.

        If the connection is closed already, *callback* is called at once.  It may run on the hub, so it must not block.
        Its typical use is to set an event.  ``handle_close`` reports only ends that the application did not ask for;
        this reports every end.

        :raises TypeError: *callback* is not callable.
        """


@runtime_checkable
class IServerConnection(IConnection, Protocol):
    """A connection that a listener accepted."""

    @property
    def control(self) -> IListener:
        """The listener that accepted this connection."""


class ListenerMetrics(NamedTuple):
    """The counters of a listener at one moment."""

    #: Whether the listener is open.
    is_accepting: bool
    #: Connections now, including those in the TLS handshake and those that are closing.
    open: int
    #: Accepted connections, including those that were then refused for ``max_per_host``.
    accepted: int
    #: How often each limit had an effect.  This is the number of pauses in accepting for ``max_connections``,
    #: ``max_handshakes`` and ``system`` (the kernel was out of descriptors or memory), of refused connections for
    #: ``max_per_host``, and of ended connections for ``max_lifetime``.
    limited: Mapping[str, int]
    #: Failed handshakes with clients (PROXY header and TLS).
    failed_handshakes: int
    #: Ends of connections that had been open, by their reasons: ``end of input``, ``stopped``, ``closed`` and
    #: ``aborted`` (by the application), ``failed`` (any other text), or the name of an exception's class.
    ended: Mapping[str, int]
    #: Bytes from peers over TCP, with TLS as ciphertext, as the kernel counts them; None if it does not count.
    bytes_received: int | None
    #: Bytes to peers over TCP, with TLS as ciphertext, as the kernel counts them; None if it does not count.
    bytes_sent: int | None
    #: Bytes of output that are pending in this process.
    output_pending: int
    #: Seconds of processor time of the hub's thread; None if they are unknown.
    cpu_seconds: float | None
    #: Seconds of the longest turn of the hub's loop; None without ``slow_callback``, and 0 if none was slow.
    longest_turn: float | None


@runtime_checkable
class IListener(Protocol):
    """An object that accepts connections, and passes them to a server.

    Made by an implementation, used by the application.  Only ``close_wait`` waits for peers.
    """

    @property
    def address(self) -> Any:
        """The address that it listens on, or the first of several, with the port that was picked.

        Readable after the close, too.
        """

    @property
    def addresses(self) -> tuple[Any, ...]:
        """All addresses that it listens on.  Readable after the close, too."""

    def connections(self) -> Iterator[IServerConnection]:
        """Iterate over the connections that are open now.  Later changes do not affect the iteration."""

    def metrics(self) -> ListenerMetrics:
        """Return the current counters of this listener.

        Never blocks.  Can be called on any thread, even while a callback blocks the hub, and after the close.  Takes a
        few microseconds for each open connection.  In memory, bytes and times are None.
        """

    def connect(self, handler: IClientConnectHandler, /, **options: Unpack[ConnectOptions]) -> object:
        """Connect a client to this listener, as its implementation's ``connect`` does with its ``address``.

        *options* are the options of that ``connect``.  For TLS, a client needs its own ``ssl_context``.
        """

    def close(self, handler: Callable[[IListener], object] | None = None, /) -> None:
        """Stop accepting connections, and free the address.

        Never waits for a peer.  Closing again is harmless.  If called from another native thread, returns once the
        listener's own thread has done this.

        Without *handler*, end all open connections now; their handlers get ``handle_close(connection, 'stopped')``.
        Pending output is sent only as far as that is possible without blocking, so a long answer may be cut short.
        Connections that the application has already closed still deliver their output.  Connections that are queued
        but not yet accepted are reset.

        With *handler*, leave open connections alone, and serve queued ones as far as ``max_connections`` allows.

        :param handler: called with the listener, on its own greenlet, when the last connection is gone; called
            immediately if there is none.
        :raises TypeError: *handler* is not callable.
        """

    def close_wait(self, timeout: float | None = None) -> int:
        """Stop accepting connections, let clients finish, and end the remaining connections.

        Blocks the calling greenlet until the last connection is gone.  Queued connections are served as far as
        ``max_connections`` allows.

        :param timeout: seconds after which the remaining connections end, as ``close()`` ends them; None for no limit.
        :returns: how many connections were ended.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """


@runtime_checkable
class IUDPListener(Protocol):
    """An object that receives datagrams, passes them to a handler, and sends datagrams.

    Made by an implementation, used by the application.
    """

    @property
    def address(self) -> Any:
        """The address that it listens on, with the port that was picked.  Readable after the close, too."""

    def send(self, address: Any, data: Data, /) -> None:
        """Send *data* to *address* as one datagram, from the address of this listener.

        Use this to answer, because many clients, and the routers in front of them, accept an answer only from the
        address to which they sent the request.  The implementation's ``udp`` sends from another address.  (This method
        is an addition to NGI.)

        On sockets, this blocks the calling greenlet for each look-up of a host name, and for up to 1 second until the
        kernel takes the datagram.  After that second the datagram is dropped, and the logger ``ngi_gevent.datagram``
        logs a warning.  In a UDP handler, a datagram to a Unix socket that has no room is dropped at once, because
        waiting would hold up all other clients.  A datagram to a Unix socket that is connected to another address is
        dropped, too.  If called from another native thread, returns once the listener's own thread has done this.
        There is no way to know whether a datagram is received.

        :raises TypeError: *address* or *data* has the wrong type.
        :raises ValueError: *address* cannot be an address.
        :raises OSError: the kernel refused to send, or the address and the listener have different families (IPv4,
            IPv6, Unix sockets).  The error names the address.
        :raises ListenerClosed: the listener or its implementation is closed, or was closed during the call.
        """

    def close(self) -> None:
        """Stop receiving and sending, and free the address.

        The handler is not called again; a call in progress finishes.  Closing again is harmless.  If called from
        another native thread, returns once the listener's own thread has done this.
        """


@runtime_checkable
class IImplementation(Protocol):
    """An object that connects and listens, on sockets or in memory.  Used by the application.

    The end of a ``with`` statement closes it, and delivers the output of closed connections.

    All implementations take the same options, and check them in the same way.  Some options have no effect in memory,
    where output is not encrypted, and no time passes.
    """

    def __enter__(self) -> Self:
        """Return this implementation."""

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Close this implementation, even after an exception, and wait until closed connections have delivered.

        Blocks the calling greenlet as long as each peer takes some of the pending output every 30 seconds.  Does not
        wait in memory, or in a callback of one of its connections.
        """

    def connect(self, address: Any, handler: IClientConnectHandler, /, **options: Unpack[ConnectOptions]) -> None:
        """Start to connect to *address*, and return.  *handler* gets the result.

        Never blocks.  Errors that are found later go to ``failed_connect``.

        :raises TypeError: *address*, *handler* or an option has the wrong type.
        :raises ValueError: *address* or an option has an invalid value.
        """

    def listener(self, address: Any, server: IServer, /, **options: Unpack[ListenOptions]) -> IListener:
        """Listen on *address*, or on all addresses of a list, and pass each new connection to *server*.

        :raises TypeError: *address*, *server* or an option has the wrong type.
        :raises ValueError: *address* or an option has an invalid value.
        :raises OSError: the kernel refused the address, which the error names.
        """

    def udp(self, address: Any, data: Data, /) -> None:
        """Send *data* to *address* as one datagram, from an address that the implementation chooses.

        To answer a datagram, use :meth:`IUDPListener.send`.  There is no way to know whether a datagram is received.

        :raises TypeError: *address* or *data* has the wrong type.
        :raises ValueError: *address* cannot be an address.
        :raises OSError: the kernel refused to send to the address, which the error names.
        """

    def udp_listener(
        self, address: Any, handler: IUDPHandler, /, buffer_size: int = ..., **options: Unpack[UDPListenOptions]
    ) -> IUDPListener:
        """Receive datagrams on *address*, and pass each to *handler*.

        :param buffer_size: bytes of the longest datagram to receive; the default is UDP's maximum.  A longer datagram
            is never cut: it is dropped, and logged.
        :raises TypeError: *address*, *handler*, *buffer_size* or an option has the wrong type.
        :raises ValueError: *address*, *buffer_size* or an option has an invalid value.
        :raises OSError: the kernel refused the address, which the error names.
        """

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no connection attempt, connection or listener of either kind is left.

        Blocks the calling greenlet.  Can be called after ``close()``, and then returns once all output is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: one of these is still left after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """

    def close(self) -> None:
        """Close every listener, and end every connection.  Never blocks.

        After this, all methods except ``wait`` and ``close`` raise :class:`~ngi_gevent.ImplementationClosed`.
        """
