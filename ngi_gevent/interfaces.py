"""The interfaces between an application and an implementation: who implements what, who calls it, and when.

An **application** writes handlers: :class:`IConnectionHandler`, :class:`IServer`, :class:`IClientConnectHandler`,
:class:`IUDPHandler`.  An **implementation** owns sockets, buffers and greenlets, and calls them.  All are protocols:
nothing needs to inherit from them, a type checker compares the shapes.

**Which greenlet.**  Every callback of a connection runs on that connection's own greenlet, so it may block (another
request, a query, ``gevent.sleep``): only this connection waits.  The callbacks of one connection never overlap.  A
listener for datagrams has a greenlet too, and its handler gets one datagram at a time.  The in-memory implementation
has no greenlets: there a callback runs on the caller's, and a callback that causes another has it queued.

**Which thread.**  What an implementation gives (connections, listeners, itself) may be used from any greenlet and any
native thread, while the hub runs that it lives on.  Calls of one thread keep their order.  What another thread asks of
a connection is checked at the call and done soon, on the thread of the connection; if that has ended meanwhile, what
was written is dropped, as it is for a connection that breaks.

**Reasons.**  Why a connection ended is told as text where nothing went wrong (``'end of input'``: the peer finished;
``'stopped'``: the listener was closed) and as the exception where something did.  ``str(reason)`` makes a fair line in
a log either way.  With TLS, an end that the peer has not announced, so that something may be missing, is an exception
too: an ``ssl.SSLEOFError``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from ssl import SSLContext
    from types import TracebackType

    from typing_extensions import Self, Unpack

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
    "ListenOptions",
    "PeerAddress",
    "Reason",
    "documented_by",
]

_Class = TypeVar("_Class", bound=type)

Data: TypeAlias = "bytes | bytearray | memoryview"
Reason: TypeAlias = "str | BaseException"

#: Where to connect to on sockets, or to send to: a host and a port, as an IPv6 socket tells it, too; or the path of a
#: Unix socket, as text or a ``Path``.  On Linux also an abstract name, which begins with a null byte, as text or bytes.
#: No file stands for it, and every process in the same network namespace can connect to it.  A listener's ``address``
#: is bytes then.
PeerAddress: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | str | bytes | os.PathLike[str]"

#: Where to listen on sockets; None is a free port on the loopback interface.
Address: TypeAlias = "PeerAddress | _Socket | None"


class _Socket(Protocol):
    """A socket of the standard library's, or of gevent's, which have no class in common."""

    def fileno(self) -> int: ...

    def getsockname(self) -> Any: ...


class ConnectOptions(TypedDict, total=False):
    """The options of each ``connect``, as :meth:`ngi_gevent.Implementation.connect` tells."""

    ssl_context: SSLContext | None
    server_hostname: str | None
    timeout: float | None


class ListenOptions(TypedDict, total=False):
    """The options of each ``listener``, as :meth:`ngi_gevent.Implementation.listener` tells."""

    backlog: int
    max_connections: int | None
    idle_timeout: float | None
    output_limit: int
    reuse_port: bool
    keep_alive: bool
    ssl_context: SSLContext | None
    handshake_timeout: float | None


class IConnectionHandler(Protocol):
    """What an application does with one connection.  Written by the application, called by the implementation.

    Two more methods are called where they exist:

    ``handle_close(connection, reason)``
        The connection ended, and not because the application closed or aborted it through this connection.  Called at
        most once, after all input; nothing follows it.  The connection is false by then, and writing raises.

    ``handle_exception(connection, exception)``
        An iterable given to ``writelines`` raised, or yielded something that is not bytes.  What was written before it
        is sent, the rest of that iterable is not, and the connection stays open.  Without this method, the connection
        is closed and ``handle_close`` gets the exception.

    What any of them raises is logged with its traceback.  From ``handle_input`` and ``handle_exception`` it also closes
    the connection (what was written is delivered), and ``handle_close`` gets it as the reason.  One exception is no
    error: a :class:`~ngi_gevent.ConnectionClosed` of this very connection, which had ended when the callback wrote to
    it.  It is logged at level DEBUG, nothing more is delivered, and ``handle_close`` gets the reason of the end.
    """

    def handle_input(self, connection: Any, data: bytes, /) -> object:
        """Take the next bytes of the peer's stream: never empty, and split anywhere.

        Runs on the connection's greenlet, and may block: what comes meanwhile waits.
        """


class IServer(Protocol):
    """Anything callable that gives a new connection its handler.  Written by the application, called by a listener.

    Often it is a class, whose objects set themselves as the handler.
    """

    def __call__(self, connection: Any, /) -> object:
        """Take a new :class:`IServerConnection`, and usually give it a handler.

        Runs on the connection's greenlet, and may block.  What it raises is logged, and ends this one connection: its
        listener goes on.  With TLS, the handshake has been done.
        """


class IClientConnectHandler(Protocol):
    """What an application does with the outcome of a ``connect``.  Written by the application, called by ``connect``.

    Exactly one of ``connected`` and ``failed_connect`` is called, once.  What they raise is logged; from ``connected``
    it closes the connection, too.

    One more method is called where it exists: ``connecting(give_up)``, before ``connect`` returns, where connecting
    takes time.  Calling ``give_up()`` ends the attempt, if it still is one: ``failed_connect('stopped')``.
    """

    def connected(self, connection: Any, /) -> object:
        """Take the connection, and usually give it a handler.  Runs on the connection's greenlet, and may block."""

    def failed_connect(self, reason: Any, /) -> object:
        """Learn why there is no connection: an exception, or text.

        Runs on a greenlet of this connect's own, and may block, and connect again.
        """


class IUDPHandler(Protocol):
    """What an application does with datagrams: anything callable.  Called by a listener, for one at a time, in order.

    It runs on the listener's greenlet, so it may block: datagrams that come meanwhile are kept by the system, as many
    as it has room for, and the rest are lost, as datagrams are.  What it raises is logged with its traceback, and the
    listener goes on.
    """

    def __call__(self, address: Any, data: bytes, /) -> object:
        """Take a whole datagram, which may be empty, and the address of its sender.

        A Unix socket that was not bound has no address: then it is None, and cannot be answered.
        """


def documented_by(interface: type) -> Callable[[_Class], _Class]:
    """Give the methods of a class that implements *interface* its docstrings, where they have none of their own.

    A decorator of classes, for who writes an implementation or an adapter.
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
    """One connection, seen from one of its ends.  Made by an implementation, used by the application.

    ========================  =========================  ===================  =========
    state                     ``write``, ``writelines``  ``close()``          ``bool``
    ========================  =========================  ===================  =========
    open                      queue, and never block     goes on to closing   ``True``
    closing: output drains    ``ConnectionClosed``       nothing              ``False``
    closed                    ``ConnectionClosed``       nothing              ``False``
    ========================  =========================  ===================  =========

    While it is open, any callback may come.  After one's own ``close()`` or ``abort()`` none does; after any other end
    ``handle_close`` does, once, and none after it.  No method of a connection blocks.
    """

    @property
    def peer_address(self) -> Any:
        """The address of the other end, as it was when the connection was made.  Readable after the close, too."""

    @property
    def local_address(self) -> Any:
        """The address of this end, as it was when the connection was made.  Readable after the close, too."""

    @property
    def ssl_object(self) -> Any:
        """What the standard library knows of this connection's TLS, an ``ssl.SSLObject``; None without TLS.

        It is for asking: ``getpeercert()``, ``version()``, ``cipher()``, ``selected_alpn_protocol()``, on the thread of
        the connection.  Reading and writing are up to the connection.  Readable after the close, too.
        """

    def __bool__(self) -> bool:
        """Return whether the connection is open, so that a ``write`` would be accepted.

        Also false once output could not be sent because the peer is gone, though input that had arrived before is still
        to be delivered, and then the end.
        """

    def set_handler(self, handler: IConnectionHandler, /) -> None:
        """Give the connection its handler, or another one.  Raises ``TypeError`` for what is none.

        Nothing is read before there is a handler; input and the end of the connection are held for it.  Called again,
        unread input goes to the new handler: that is how a protocol is changed.
        """

    def write(self, data: Data, /) -> None:
        """Queue *data*; never blocks.  What is mutable is copied.

        Small writes made in one callback leave together, when it returns or blocks.  Raises ``TypeError`` for what is
        no bytes, bytearray or memoryview, and :class:`~ngi_gevent.ConnectionClosed` once the connection is closing.
        """

    def writelines(self, data: Iterable[Data], /) -> None:
        """Queue what *data* will yield; never blocks.  It is pulled only as the peer takes it, never far ahead.

        The iterable may block, on a greenlet of its own.  Order is kept with everything written before and after.  An
        empty piece sends nothing: the next is pulled when everything before it is taken.
        Raises ``TypeError`` for what is not iterable, text and single bytes objects, and
        :class:`~ngi_gevent.ConnectionClosed` once the connection is closing.
        """

    def close(self) -> None:
        """Deliver what was written, then end the connection; never blocks, and no callback follows.

        The peer gets everything before it sees the end.  Closing a connection that is closing or closed does nothing.
        """

    def abort(self) -> None:
        """End the connection now, dropping what was not sent; no callback follows.

        The peer sees a broken connection, not an orderly end, as far as its kind can tell (TCP: a reset).  It also
        ends a connection that is still closing.
        """

    def when_closed(self, callback: Callable[[], object], /) -> None:
        """Have ``callback()`` called once the connection is closed, everything delivered, and its last callback done.

        Called at once if it is so already.  It may be called on the hub, so it must not block: setting an event is what
        it is for.  ``handle_close`` tells of ends that the application did not ask for, this tells of all.
        """


@runtime_checkable
class IServerConnection(IConnection, Protocol):
    """A connection that a listener accepted."""

    @property
    def control(self) -> IListener:
        """The listener that accepted this connection."""


@runtime_checkable
class IListener(Protocol):
    """A place where connections are accepted, each given to the server callable.

    Made by an implementation, used by the application.  Nothing but ``close_wait`` waits for peers.
    """

    @property
    def address(self) -> Any:
        """Where it listens, with the port that was picked if none was named.  Readable after the close, too."""

    def connections(self) -> Iterator[IServerConnection]:
        """Iterate over those of its connections that are open now; later changes do not disturb the iteration."""

    def connect(self, handler: IClientConnectHandler, /, **options: Unpack[ConnectOptions]) -> object:
        """Connect a client to this listener, as ``connect(listener.address, handler)`` of its implementation does.

        The options, too, are those of that ``connect``: with TLS, a client needs an ``ssl_context`` of its own.
        """

    def close(self, handler: Callable[[IListener], object] | None = None, /) -> None:
        """Stop accepting, which frees the address at once.  Never waits for a peer; twice is harmless.

        From another native thread than its own, this waits until that thread has seen to it.  Raises ``TypeError`` for
        a *handler* that cannot be called.

        Without *handler*, every open connection ends now: ``handle_close(connection, 'stopped')``.  The peer gets as
        much of the output as can be sent without waiting, so a long answer may be cut short.  A connection that the
        application had closed already finishes delivering.

        Who had connected and was not accepted is broken off, since nobody has looked at what they sent.

        With *handler*, connections are left alone, and ``handler(listener)`` is called, on a greenlet of its own, when
        the last is gone; at once if there is none.  Who had connected and was not accepted is served too, as far as
        ``max_connections`` allows.
        """

    def close_wait(self, timeout: float | None = None) -> int:
        """Stop accepting, and wait for clients to finish on their own for up to *timeout* seconds, forever if None.

        Who had connected and was not accepted is served too, as far as ``max_connections`` allows.  Those that are left
        in the end are ended as ``close()`` does.  Returns how many that were.  Blocks the calling greenlet; raises
        :class:`~ngi_gevent.Deadlock` where it could only wait for itself.
        """


@runtime_checkable
class IUDPListener(Protocol):
    """A place where datagrams are received, each given to the handler, and sent from.

    Made by an implementation, used by the application.
    """

    @property
    def address(self) -> Any:
        """Where it listens, with the port that was picked if none was named.  Readable after the close, too."""

    def send(self, address: Any, data: Data, /) -> None:
        """Send *data* to *address* as one datagram from the address of this listener: that is how to answer.

        Many clients take an answer from nowhere else than where they have asked, and so do the routers in front of
        them; ``udp`` of the implementation sends from another address.  It is an addition to NGI.

        On sockets it blocks the calling greenlet to look up a name, each time, and for up to 1 second until the system
        takes the datagram.  After that, the datagram is dropped, with a warning of the logger ``ngi_gevent.datagram``.
        In a handler of datagrams, one to a Unix socket that has no room is dropped at once, because the handler would
        keep all other clients waiting.  One to a Unix socket that is connected to another address is dropped, too.
        From another native thread than its own, this waits until that thread has seen to it.  Whether anybody receives
        it is not known.

        Raises ``TypeError`` or ``ValueError`` for what can be no address, ``TypeError`` for what is no bytes, bytearray
        or memoryview, and ``OSError``, naming the address, where the system refuses to send it, or where the address is
        of another family than this listener's (IPv4, IPv6, Unix sockets).  After ``close()``, also that of the
        implementation, and if it comes while this waits: :class:`~ngi_gevent.ListenerClosed`.
        """

    def close(self) -> None:
        """Receive and send no more, which frees the address at once.  Twice is harmless.

        The handler is not called again; a call that is under way is finished.  From another native thread than its
        own, this waits until that thread has seen to it.
        """


@runtime_checkable
class IImplementation(Protocol):
    """Something that connects and listens: on sockets, or in memory.  Used by the application.

    As a context manager, it is closed at the end, and what was written to connections that were closed is delivered.

    All take the same options, and check them in the same way.  What an option asks for is done where there is something
    to do it to: in memory, nothing is encrypted, and no time passes.
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
        """Close this implementation, whatever was raised, and wait until connections that were closed have delivered.

        Blocks the calling greenlet for as long as each peer takes some of what is pending within 30 seconds; in memory,
        and in a callback of one of its connections, it does not wait.
        """

    def connect(self, address: Any, handler: IClientConnectHandler, /, **options: Unpack[ConnectOptions]) -> None:
        """Start to connect to *address* and return; *handler* learns what came of it.

        Raises ``TypeError`` or ``ValueError`` for what can be no address or option, and ``TypeError`` for what is no
        handler.  Everything that is found out later is told to ``failed_connect``.
        """

    def listener(self, address: Any, server: IServer, /, **options: Unpack[ListenOptions]) -> IListener:
        """Listen on *address* and return; every connection is given to *server*.

        Raises ``TypeError`` or ``ValueError`` for what can be no address or option, ``TypeError`` for a server that
        cannot be called, and ``OSError``, naming the address, where the system refuses it.
        """

    def udp(self, address: Any, data: Data, /) -> None:
        """Send *data* to *address* as one datagram, from an address of the implementation's choice.

        To answer from the address that was asked, there is :meth:`IUDPListener.send`.  Whether anybody receives it is
        not known, as always with datagrams.

        Raises ``TypeError`` or ``ValueError`` for what can be no address, ``TypeError`` for what is no bytes, bytearray
        or memoryview, and ``OSError``, naming the address, where the system refuses to send it.
        """

    def udp_listener(self, address: Any, handler: IUDPHandler, /, buffer_size: int = ...) -> IUDPListener:
        """Receive datagrams on *address* and return; each is given to *handler*.

        None is ever cut: the default takes the longest that UDP has, and one longer than *buffer_size* bytes is dropped
        and logged.  Raises ``TypeError`` or ``ValueError`` for what can be no address or buffer size, ``TypeError`` for
        a handler that cannot be called, and ``OSError``, naming the address, where the system refuses it.
        """

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is outstanding: no connection attempt, connection or listener of either kind.

        Blocks the calling greenlet.  May be called after ``close()``; then it returns once everything is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: something is still outstanding after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """

    def close(self) -> None:
        """Close every listener of either kind, and end every connection.  Never blocks.

        Any method but ``wait`` and ``close`` that is called afterwards raises
        :class:`~ngi_gevent.ImplementationClosed`.
        """
