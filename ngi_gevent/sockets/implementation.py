"""Implementations on gevent: which hub connections live on, what is outstanding there, and who learns of errors."""

from __future__ import annotations

import atexit
import functools
import threading
from collections.abc import Callable
from socket import SOCK_DGRAM
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from gevent import get_hub
from gevent.event import Event
from gevent.monkey import is_module_patched
from greenlet import getcurrent

from ngi_gevent.core import forks
from ngi_gevent.core.address import check_connect_address, check_listen_address, check_send_address
from ngi_gevent.core.connection import OUTPUT_LIMIT, as_bytes, check_count, check_timeout
from ngi_gevent.core.datagram import BUFFER_SIZE, check_buffer_size, check_datagram_handler
from ngi_gevent.core.listening import check_client_handler, check_idle_timeout, check_max_connections, check_server
from ngi_gevent.core.registry import Outstanding
from ngi_gevent.core.threads import Flag, make_lock, start_new_thread
from ngi_gevent.errors import Deadlock, ImplementationClosed, Timeout
from ngi_gevent.interfaces import documented_by
from ngi_gevent.sockets import transport
from ngi_gevent.sockets.acceptor import default_max_connections
from ngi_gevent.sockets.connector import Connector
from ngi_gevent.sockets.datagram_socket import DatagramListener, DatagramSender
from ngi_gevent.sockets.dispatcher import Dispatcher, current_connection
from ngi_gevent.sockets.linger import DRAIN_TIMEOUT, SEND_TIMEOUT
from ngi_gevent.sockets.listener import BACKLOG, StreamListener
from ngi_gevent.sockets.network import Network

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self

    from ngi_gevent.core.logs import Seldom
    from ngi_gevent.interfaces import Address, Data, IClientConnectHandler, IServer, IUDPHandler, PeerAddress
    from ngi_gevent.sockets.mailbox import Mailbox

__all__ = ["Implementation", "Inline", "Threaded", "connect", "default", "listener", "udp", "udp_listener", "wait"]


#: Seconds that a program which ends gives a thread of ours to end in order: more than a peer who does not close its
#: side can take, or the thread would end in the moment when the interpreter does, which crashes.
EXIT_PATIENCE = DRAIN_TIMEOUT + 1.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _on_its_hub(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Have *method* called on the thread of the hub that the implementation is for."""

    @functools.wraps(method)
    def call(self: Implementation, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return self._call(functools.partial(method, self, *arguments, **options))

    return call


class Implementation:
    """Connects and listens on the hub of the calling thread.

    Greenlets of that thread serve the connections whenever it waits on gevent: in ``wait()``, in ``gevent.sleep``, or
    in anything that is monkey-patched.  Nothing keeps a program running by itself.  What handlers raise is logged, by
    the logger ``ngi_gevent.connection``.  At the end of a ``with`` statement, it is closed, and what was written to
    connections that were closed is delivered: the statement waits for as long as their peers take some of it within 30
    seconds.

    It may be used from several threads, each of which has its own hub.  The connections and listeners that it makes may
    be used from any thread, while their hub runs.  After ``close()``, all that asks something of it raises
    :class:`~ngi_gevent.ImplementationClosed`.
    """

    def __init__(self) -> None:
        self._network = Network()
        self._closed = False
        # A hub that is given up must not be kept by us; what is outstanding on it keeps it.
        self._on_hub: WeakKeyDictionary[Any, _OutstandingOnHub] = WeakKeyDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        hub = get_hub()
        outstanding = self._on_hub.get(hub)
        # In a callback of one of its connections, or on the hub itself, waiting could not end.
        if outstanding is not None and not outstanding.includes(current_connection()) and getcurrent() is not hub:
            outstanding.wait_for_delivery()

    @_on_its_hub
    def connect(
        self,
        address: PeerAddress,
        handler: IClientConnectHandler,
        *,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | None = transport.CONNECT_TIMEOUT,
    ) -> None:
        """Start to connect to *address* and return: *handler* is told what came of it.

        Never blocks.  *address* is ``(host, port)``, or the path or abstract name of a Unix socket
        (:data:`~ngi_gevent.interfaces.PeerAddress`).  Raises ``TypeError`` or ``ValueError`` for what can be no
        address, handler or option; all else is told to ``failed_connect``, on a greenlet of this connect's own.

        :param ssl_context: what to speak TLS with; any ``ssl.SSLContext`` for clients.  Where the handshake fails,
            ``failed_connect`` gets the ``ssl.SSLError``: ``ssl.SSLCertVerificationError`` for a certificate that is not
            trusted, or not that of the server.
        :param server_hostname: the name to ask for, and to find in the certificate, if it is not the host of *address*;
            ``''`` for none, which only a context allows that does not check it.
        :param timeout: seconds for looking up the name, connecting, and the handshake, in all; None for no limit but
            the system's.  Then ``failed_connect`` gets a :class:`~ngi_gevent.ConnectionTimeout`.
        """
        check_connect_address(address)
        check_client_handler(handler)
        make_connection = transport.of_clients(
            transport.host_of(address), ssl_context=ssl_context, server_hostname=server_hostname, timeout=timeout
        )
        hub, outstanding = self._outstanding()
        outstanding.add(Connector(self._network, outstanding, hub, address, handler, timeout, make_connection))

    @_on_its_hub
    def listener(
        self,
        address: Address,
        handler: IServer,
        *,
        backlog: int = BACKLOG,
        max_connections: int | None = None,
        idle_timeout: float | None = None,
        output_limit: int = OUTPUT_LIMIT,
        reuse_port: bool = False,
        keep_alive: bool = True,
        ssl_context: SSLContext | None = None,
        handshake_timeout: float | None = transport.HANDSHAKE_TIMEOUT,
    ) -> StreamListener:
        """Listen on *address*, give every connection to *handler*, a server, and return at once.

        The server, and the handlers that it sets, are called on a greenlet for each connection, on the hub of the
        calling thread; :class:`Threaded` has one of its own.  This waits only to look up the name of a host.

        *address* is ``(host, port)``, where port 0 picks one; the path or abstract name of a Unix socket
        (:data:`~ngi_gevent.interfaces.PeerAddress`); None for a free port on the loopback interface; or a bound socket,
        which then belongs to the listener.  Raises ``TypeError`` or ``ValueError`` for what can be no address or
        option, and ``OSError``, naming the address, where the system refuses it; nothing is left behind then.

        :param backlog: connections that the kernel keeps until they are accepted.
        :param max_connections: connections that there may be at a time, each until it is gone.  While there are so many
            none is accepted, and the kernel queues who connects; the logger ``ngi_gevent.listener`` tells.  The default
            is nine tenths of the descriptors that this process may have open, and 32 less than all at most: the rest is
            for what handlers open.
        :param idle_timeout: seconds in which nothing was received from a peer, nor sent to it, after which its
            connection is closed, with a :class:`~ngi_gevent.Timeout` as the reason.  The time that a callback or an
            iterable takes does not count, since the peer waits for it; what other greenlets do for the peer is not
            known here.  By default there is no limit: there are protocols in which silence is the rule.
        :param output_limit: bytes of output that may wait for one peer; one more write ends its connection, with
            :class:`~ngi_gevent.LimitExceeded` as the reason.
        :param reuse_port: whether other processes may listen on the same port, the kernel sharing out connections.
        :param keep_alive: whether the kernel looks, now and then, whether a silent peer is still there.
        :param ssl_context: what to speak TLS with; any ``ssl.SSLContext`` for servers.  *handler* is called when the
            handshake is done.  One that fails is a line in the log of ``ngi_gevent.connection``, of level INFO.  Until
            then a connection is not among ``connections()``; closing the listener ends it, ``close_wait`` waits for it.
        :param handshake_timeout: seconds for the handshake; None for no limit.
        """
        check_listen_address(address)
        check_server(handler)
        check_count("backlog", backlog)
        check_max_connections(max_connections)
        check_idle_timeout(idle_timeout)
        check_count("output_limit", output_limit)
        make_connection = transport.of_servers(ssl_context, handshake_timeout)
        outstanding = self._outstanding()[1]
        listener = StreamListener(
            self._network,
            outstanding,
            self.connect,
            address,
            handler,
            backlog=backlog,
            max_connections=default_max_connections(self._network) if max_connections is None else max_connections,
            idle_timeout=idle_timeout,
            output_limit=output_limit,
            reuse_port=reuse_port,
            keep_alive=keep_alive,
            make_connection=make_connection,
        )
        self._check_still_open(listener)
        outstanding.add(listener)
        return listener

    @_on_its_hub
    def udp(self, address: PeerAddress, data: Data) -> None:
        """Send *data* to *address* as one datagram, from a socket that all datagrams of this implementation share.

        To answer from the address that was asked, there is :meth:`ngi_gevent.interfaces.IUDPListener.send`.

        *address* is what it is for ``connect``.  Raises ``TypeError`` or ``ValueError`` for what can be no address or
        data, and ``OSError``, naming the address, where the name is not found or the system refuses the datagram.
        Blocks the calling greenlet while a name is looked up, each time, and for up to 1 second until the system takes
        the datagram; then it is dropped, with a warning.  For Unix sockets, see
        :meth:`ngi_gevent.interfaces.IUDPListener.send`.
        """
        check_send_address(address)
        data = as_bytes(data)
        self._outstanding()[1].sender.send(address, data)

    @_on_its_hub
    def udp_listener(self, address: Address, handler: IUDPHandler, buffer_size: int = BUFFER_SIZE) -> DatagramListener:
        """Receive datagrams on *address*, give each to *handler*, one at a time and in order, and return at once.

        *handler* is called on a greenlet of the listener's, on the hub of the calling thread; :class:`Threaded` has one
        of its own.  This waits only to look up the name of a host.

        *address* is what it is for ``listener``; a bound socket is one for datagrams.  Raises ``TypeError`` or
        ``ValueError`` for what can be no address, handler or buffer size, and ``OSError``, naming the address, where
        the system refuses it; nothing is left behind then.

        :param buffer_size: bytes of the longest datagram to take; a longer one is dropped, with a warning of the logger
            ``ngi_gevent.datagram``.  The default takes the longest that UDP has; Unix sockets may send longer ones.
        """
        check_listen_address(address, SOCK_DGRAM)
        check_datagram_handler(handler)
        check_buffer_size(buffer_size)
        hub, outstanding = self._outstanding()
        listener = DatagramListener(self._network, outstanding, hub, address, handler, buffer_size)
        self._check_still_open(listener)
        outstanding.add(listener)
        return listener

    def wait(self, timeout: float | None = None) -> None:
        """Serve until nothing is outstanding on this thread's hub: no connection attempt, connection or listener.

        Blocks the calling greenlet, while the others of this thread go on.  After ``close()``, returns once the output
        of all connections that were closed is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: something is still outstanding after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """
        check_timeout(timeout)
        outstanding = self._on_hub.get(get_hub())
        if outstanding is None:
            return
        if outstanding.includes(current_connection()):
            raise Deadlock("wait was called in a callback of one of the connections that it would wait for")
        if not outstanding.wait(timeout):
            raise Timeout(f"still outstanding after {timeout} seconds: {outstanding}")

    def close(self) -> None:
        """Close all listeners, end all connections, and give up all connects, never blocking; twice is harmless.

        Open connections end for the reason ``'stopped'``, and connects that are under way fail for it.  Connections
        that the application has closed before finish delivering while their hub runs; ``wait()`` waits for that.  Any
        other method called afterwards raises :class:`~ngi_gevent.ImplementationClosed`.
        """
        self._closed = True
        # Other threads add to it, and the garbage collector removes from it.  This copy is made in one step.
        for reference in self._on_hub.keyrefs():
            hub = reference()
            if hub is None:
                continue
            outstanding = self._on_hub[hub]
            if outstanding.mailbox.is_here():
                outstanding.stop()
            else:
                outstanding.mailbox.call_soon(outstanding.stop)

    def _call(self, function: Callable[[], Result]) -> Result:
        return function()

    def _check_open(self) -> None:
        if self._closed:
            raise ImplementationClosed("this implementation was closed")

    def _check_still_open(self, listener: StreamListener | DatagramListener) -> None:
        """Leave no listener behind if this was closed while a name was looked up for it."""
        if self._closed:
            listener.close()
            self._check_open()

    def _make_outstanding(self) -> _OutstandingOnHub:
        return _OutstandingOnHub(self._network)

    def _outstanding(self) -> tuple[Any, _OutstandingOnHub]:
        self._check_open()
        hub = get_hub()
        outstanding = self._on_hub.get(hub)
        if outstanding is None:
            outstanding = self._on_hub[hub] = self._make_outstanding()
            self._check_open()  # because a close() at the same time may not have found this hub
        return hub, outstanding


class _OutstandingOnHub(Outstanding):
    """What is outstanding on one hub, and what sends datagrams there, which is not."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network
        self.sender = DatagramSender(network)
        self.mailbox = Dispatcher.current().mailbox

    def stop(self) -> None:
        super().stop()
        self.sender.close()

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is outstanding, or for *timeout* seconds; whether nothing is."""
        deadline = None if timeout is None else self._network.now() + timeout
        in_time = True
        while in_time and not self._over():
            empty = Flag()
            self._when_empty.append(empty.set)
            try:
                in_time = empty.wait(None if deadline is None else max(0, deadline - self._network.now()))
            finally:
                self._when_empty.remove(empty.set)
        return self._over()

    def wait_for_delivery(self) -> None:
        """Wait until all connections are closed, for as long as peers take some of the output in time.

        Callbacks that still run are not waited for.  A closed connection that has one is noticed within a second.
        """
        left, deadline = self.unsent_size(), self._network.now() + SEND_TIMEOUT
        while not self.wait(DRAIN_TIMEOUT) and self.has_connections():
            before, left = left, self.unsent_size()
            if left != before:
                deadline = self._network.now() + SEND_TIMEOUT
            elif self._network.now() > deadline:
                return

    def _over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return not self

    def handler_raised(self, peer: Any, where: str, error: BaseException, seldom: Seldom | None = None) -> None:
        super().handler_raised(peer, where, error, seldom)
        hub = get_hub()
        if isinstance(error, hub.SYSTEM_ERROR):
            # Somebody wants the program to end: that is for the main greenlet, as everywhere in gevent.
            hub.handle_system_error(type(error), error, error.__traceback__)


class _OutstandingInline(_OutstandingOnHub):
    """What is outstanding on the hub of a script, which learns of the first error from ``wait``."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._raised: tuple[Any, str, BaseException] | None = None
        self._stopped = False  # whether no wait will come any more

    def wait(self, timeout: float | None) -> bool:
        over = super().wait(timeout)
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised[2]
        return over

    def stop(self) -> None:
        self._stopped = True
        raised, self._raised = self._raised, None
        if raised is not None:
            super().handler_raised(*raised)
        super().stop()

    def _over(self) -> bool:
        return self._raised is not None or super()._over()

    def handler_raised(self, peer: Any, where: str, error: BaseException, seldom: Seldom | None = None) -> None:
        if self._stopped or self._raised is not None:
            super().handler_raised(peer, where, error, seldom)
            return
        self._raised = peer, where, error
        for wake in list(self._when_empty):
            wake()


class _OutstandingInThread(_OutstandingOnHub):
    """What is outstanding on the hub of a thread of its own, where no program can be ended from."""

    def handler_raised(self, peer: Any, where: str, error: BaseException, seldom: Seldom | None = None) -> None:
        Outstanding.handler_raised(self, peer, where, error, seldom)


class Inline(Implementation):
    """Connects and listens on the hub of the calling thread, for scripts: ``wait`` raises what a handler raised.

    All else is as with :class:`Implementation`.  The first error since the last ``wait`` is kept for it, and not
    logged; further ones are, and those that no ``wait`` comes for before ``close``.  ``wait`` returns as soon as there
    is one, leaving everything else as it is.
    """

    def _make_outstanding(self) -> _OutstandingOnHub:
        return _OutstandingInline(self._network)


@documented_by(Implementation)
class Threaded(Implementation):
    """Connects and listens on a hub in a daemon thread of its own, for programs that know nothing of gevent.

    All else is as with :class:`Implementation`.  The thread is started on first use, and ends after ``close()``, when
    the last connection has ended; greenlets that handlers have spawned are not waited for.  It is a native one in every
    program, monkey-patched or not.  Handlers run on that thread; what they raise is logged.  Every method may be called
    from any thread, and waits only as long as it takes that thread to see to it: so a handler that keeps the thread,
    without waiting on gevent, keeps callers, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._starting = make_lock()
        self._start: _Start | None = None  # the thread's, under way or done
        self._hub: Any = None
        self._mailbox: Any = None
        self._stop = Event()
        self._delivered = Flag()  # set once it is closed, and as much as peers take is delivered
        self._ended = Flag()

    def _call(self, function: Callable[[], Result]) -> Result:
        return self._running_mailbox().call(function)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is outstanding: no connection attempt, connection or listener.

        Blocks the calling greenlet or thread.  After ``close()``, returns when the thread has ended, so that everything
        is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: something is still outstanding after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """
        check_timeout(timeout)
        if self._is_on_its_thread():
            super().wait(timeout)
        elif not self._closed:
            self._running_mailbox().call(super().wait, timeout)
        elif self._has_thread() and not self._ended.wait(timeout):
            raise Timeout(f"still outstanding after {timeout} seconds: {self._on_hub[self._hub]}")

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._has_thread() and not self._is_on_its_thread():
            self._delivered.wait()

    def _has_thread(self) -> bool:
        """Return whether this was started in this process; a forked child has none of its parent's threads."""
        start = self._start
        return start is not None and start.generation == forks.generation()

    def _is_on_its_thread(self) -> bool:
        return self._mailbox is not None and bool(self._mailbox.is_here())

    def close(self) -> None:
        if self._closes():
            self._mailbox.call(self._stop_all)

    def _closes(self) -> bool:
        """Close for new requests; whether there is something to be stopped."""
        with self._starting:
            closed, self._closed = self._closed, True
            start = self._start
        if closed or start is None or not self._has_thread():
            return False
        start.over.wait()
        return start.error is None

    def _stop_all(self) -> None:
        self._on_hub[self._hub].stop()
        self._stop.set()

    def _make_outstanding(self) -> _OutstandingOnHub:
        return _OutstandingInThread(self._network)

    def _running_mailbox(self) -> Mailbox:
        # Nobody must wait with the lock held, since greenlets of one thread would wait for each other for ever.
        with self._starting:
            self._check_open()
            begun = self._start is not None
            start = self._start = self._start or _Start()
        if start.generation != forks.generation():
            raise ImplementationClosed(
                "this Threaded was started before a fork, and its thread is in the parent process; make a new one"
            )
        if not begun:
            self._start_thread(start)
        start.over.wait()
        if start.error is not None:
            raise start.error
        return self._mailbox  # type: ignore[no-any-return]

    def _start_thread(self, start: _Start) -> None:
        _running.add(self)
        try:
            # libev opens up to three, and without them it tries again forever, without waiting.
            self._network.check_room(4)
            if is_module_patched("threading"):
                # A hub made in a new thread waits for import locks that only a hub of this thread could give it.
                get_hub()
                start_new_thread(self._serve, (start,))
            else:
                name = "ngi_gevent.Threaded"
                threading.Thread(target=self._serve, args=[start], name=name, daemon=True).start()
        except Exception as error:
            self._start_failed(start, error)

    def _start_failed(self, start: _Start, error: BaseException) -> None:
        """Raise *error* to all callers that wait for this start; the next call tries again."""
        with self._starting:
            _running.discard(self)
            self._start = None
        start.error = error
        start.over.set()

    def end_at_exit(self) -> None:
        """Close, and wait a moment for the thread: an interpreter that ends while a thread does may crash."""
        if self._closes():
            self._mailbox.call_soon(self._stop_all)
        if self._has_thread():
            self._ended.wait(EXIT_PATIENCE)

    def _serve(self, start: _Start) -> None:
        """Run the hub until this is closed and everything has ended: the body of the thread."""
        hub = None
        try:
            hub = self._hub = get_hub()
            keep_running = hub.loop.async_()  # or a loop with nothing to do would end
            keep_running.start(lambda: None)
            outstanding = self._on_hub[hub] = self._make_outstanding()
            self._mailbox = outstanding.mailbox
        except BaseException as error:
            if hub is not None:
                hub.destroy(destroy_loop=True)
            self._start_failed(start, error)
            return
        # A greenlet that raises SystemExit or KeyboardInterrupt would end this thread, and all that it serves, only.
        hub.SYSTEM_ERROR = (SystemError,)
        start.over.set()
        self._stop.wait()
        outstanding.wait_for_delivery()
        self._delivered.set()
        outstanding.wait(None)
        self._mailbox.close()
        keep_running.close()
        hub.destroy(destroy_loop=True)
        self._ended.set()
        _running.discard(self)


class _Start:
    """One start of the thread of a :class:`Threaded`.

    :ivar generation: that of the process which the thread is in.
    :ivar over: set once the hub runs, or cannot.
    :ivar error: the reason why it cannot, if so.
    """

    def __init__(self) -> None:
        self.generation = forks.generation()
        self.over = Flag()
        self.error: BaseException | None = None


# Those whose thread may run.  Not a WeakSet, since a thread can begin or end while that is iterated over.
_running: set[Threaded] = set()


@atexit.register
def _end_running_threads() -> None:
    for implementation in list(_running):
        implementation.end_at_exit()


#: The implementation behind ``ngi_gevent.connect`` and its fellows.
default = Implementation()
connect = default.connect
listener = default.listener
udp = default.udp
udp_listener = default.udp_listener
wait = default.wait
