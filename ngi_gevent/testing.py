"""An implementation without sockets, and handlers that print or record: for testing handlers in memory.

Start with :class:`Recorder` and :class:`Implementation`, or, for doctests, with a :class:`Connection` that prints.

Everything is synchronous and deterministic.  Nothing is spawned and nothing waits: ``connect`` has run its course when
it returns, and what is written outside of any callback has been handled when ``write`` returns.  A callback that causes
another has it queued, never nested: callbacks of one implementation, or of one pair made with :class:`Connection`, take
turns in the order in which they were caused.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Container, Hashable
from itertools import count
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.connection import (
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    HIGH_WATER,
    OPEN,
    OUTPUT_LIMIT,
    STOPPED,
    BaseConnection,
    ConnectionOwner,
    PendingLines,
    as_bytes,
    check_count,
    check_returned,
    check_timeout,
)
from ngi_gevent.datagram import BUFFER_SIZE, BaseDatagramListener, check_buffer_size, check_datagram_handler
from ngi_gevent.errors import ConnectionFailed, Deadlock, ImplementationClosed, NGIError, Timeout
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.listening import BaseListener, check_client_handler, check_server
from ngi_gevent.outstanding import Outstanding
from ngi_gevent.threads import allocate_lock

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IClientConnectHandler, IConnectionHandler, IServer, IUDPHandler, Reason
    from ngi_gevent.threads import Flag

__all__ = [
    "Connection",
    "DatagramListener",
    "Implementation",
    "Listener",
    "PrintingHandler",
    "Recorder",
    "TextConnection",
    "TextPrintingHandler",
    "connect",
    "connectable",
    "default",
    "listener",
    "udp",
    "udp_listener",
    "wait",
]

#: Bytes that the network takes for a peer that does not read, as the buffers of a kernel would.
NETWORK_SIZE = 1024 * 1024

#: Failed connects to one address in one go, after which a client that tries again and again is stopped.
MAX_RECONNECTS = 1000


class Recorder:
    """A connection handler for asserting: it keeps all that happens.  ``Recorder(connection)`` sets itself as handler.

    So the class is a server, too; and a recorder is a client connect handler that sets itself.

    :ivar chunks: the pieces of input, as they came; ``data`` is all of them.
    :ivar closed: why the connection ended, or None.
    :ivar exceptions: what iterables given to ``writelines`` raised.
    :ivar connection: the connection that it set itself on, or None.
    :ivar failed: why there is no connection, or None.
    """

    def __init__(self, connection: Any = None) -> None:
        self.chunks: list[bytes] = []
        self.closed: Reason | None = None
        self.exceptions: list[BaseException] = []
        self.failed: Reason | None = None
        self.connection: Any = None
        if connection is not None:
            self.connected(connection)

    @property
    def data(self) -> bytes:
        """All input so far."""
        return b"".join(self.chunks)

    def connected(self, connection: Any) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.chunks.append(data)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self.closed = reason

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.exceptions.append(exception)


class PrintingHandler:
    """A connection handler that prints what happens, for doctests."""

    def handle_input(self, connection: Any, data: bytes) -> None:
        text = repr(data)
        for start in range(0, len(text), 50):
            print(".>" if start else "->", text[start : start + 50])

    def handle_close(self, connection: Any, reason: Reason) -> None:
        print("-> CLOSE" if reason == END_OF_INPUT else f"-> CLOSE {reason}")

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        print("-> EXCEPTION", type(exception).__name__, exception)


class _PrintingClient(PrintingHandler):
    """A client connect handler that prints what its connection receives."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.failed: Reason = "it is made after the callback that asks for it"

    def connected(self, connection: Connection) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: Reason) -> None:
        self.failed = reason


class TextPrintingHandler(PrintingHandler):
    """A printing handler that prints input as the UTF-8 text that it is."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def handle_input(self, connection: Any, data: bytes) -> None:
        sys.stdout.write(self._decoder.decode(data))


class _Turns:
    """Callbacks waiting for their turn, one at a time."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._lock = allocate_lock()
        #: Whether callbacks are being called.
        self.running = False
        #: The connection, or the listener for datagrams, in one of whose callbacks we are.
        self.current: BaseConnection | BaseDatagramListener | None = None
        #: What a callback wants the caller of the outermost call to learn.
        self.error: BaseException | None = None
        #: The greenlet that callbacks are being called on.
        self.greenlet: Any = None

    def queue(self, callback: Callable[[], object]) -> None:
        self._queue.append(callback)

    def _begins(self) -> bool:
        """Whether there is something to run and nobody who does; then it is the caller."""
        with self._lock:
            begins = bool(self._queue) and not self.running
            self.running = self.running or begins
        return begins

    def run(self) -> None:
        """Run what is queued, and what that causes, unless that is being done already: here, or on another thread."""
        while self._begins():
            self.greenlet = getcurrent()
            try:
                while self._queue:
                    self.current = None
                    self._queue.popleft()()
            finally:
                self.current = self.greenlet = None
                self.running = False
            error, self.error = self.error, None
            if error is not None:
                raise error


class _Arriving(bytes):
    """Input that a test lets arrive, which the peer has not written."""


class _End:
    """The end of what one side sends, and what the other is told about it."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _MemoryOutstanding(Outstanding):
    """What is outstanding in memory.  What wants the whole program to end leaves the outermost call."""

    def __init__(self, turns: _Turns) -> None:
        super().__init__()
        self.turns = turns

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        super().handler_raised(peer, where, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.turns.error = error


@documented_by(IConnection)
class Connection(BaseConnection):
    """One side of a connection in memory; ``peer`` is the other.  Making one makes both.

    Pass it to what is to be tested, and look at the peer, whose connection handler is *handler*; without one, the peer
    prints what it receives.  *address* and *peer_address* are those of the two sides.
    """

    # What one side has written waits in its wire, in order: bytes, iterators given to writelines, and at last an _End.
    # The other side takes from there, when it is its turn and it can take input.
    __slots__ = ("_begin", "_queued", "_turns", "_wire", "peer")

    #: The handler of the peer, where none is given.
    printing_handler: type[PrintingHandler] = PrintingHandler

    peer: Connection

    def __init__(
        self, handler: IConnectionHandler | None = None, address: Any = None, peer_address: Any = None
    ) -> None:
        turns = _Turns()
        outstanding = _MemoryOutstanding(turns)
        peer = _unconnected()
        self._set_up(turns, outstanding, peer, address, peer_address)
        peer._set_up(turns, outstanding, self, peer_address, address)
        peer.set_handler(self.printing_handler() if handler is None else handler)

    def _set_up(
        self,
        turns: _Turns,
        owner: ConnectionOwner,
        peer: Connection,
        address: Any,
        peer_address: Any,
        control: Listener | None = None,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        super().__init__(owner, control, address, peer_address, output_limit)
        self._turns = turns
        self.peer = peer
        self._wire: deque[bytes | PendingLines | _End] = deque()
        self._begin: tuple[Callable[[Any], object], str] | None = None
        self._queued = False

    # The network's part, for tests.

    def test_input(self, data: Data) -> None:
        """Have *data* arrive, as if the peer had written it."""
        data = as_bytes(data)
        if self._state is OPEN:
            self.peer._wire.append(_Arriving(data))
            self._take_turn()

    def test_close(self, reason: Reason = END_OF_INPUT) -> None:
        """Have the end arrive, for *reason*, as if the peer had finished sending, or the connection had broken."""
        if self._state is OPEN:
            self.peer._wire.append(_End(reason))
            self._take_turn()

    # Output.

    def write(self, data: Data, /) -> None:
        data = as_bytes(data)
        if self._state is not OPEN:
            raise self._closed_error()
        if data and not self._over_limit():
            self._pending += len(data)
            self._put(data)

    def _queue_lines(self, lines: PendingLines) -> None:
        self._put(lines)

    def _waiting_for_peer(self) -> int:
        return self._pending - NETWORK_SIZE

    def _put(self, item: bytes | PendingLines | _End) -> None:
        self._wire.append(item)
        self.peer._take_turn()

    def _taken(self) -> bytes | _End | None:
        """What the peer gets next of what was written here: as many bytes as there are in one piece, or the end."""
        written = []
        while self._wire:
            head = self._wire[0]
            if isinstance(head, bytes):
                written.append(head)
                if not isinstance(head, _Arriving):
                    self._pending -= len(head)
                self._wire.popleft()
            elif written:
                break
            elif isinstance(head, _End):
                self._wire.popleft()
                return head
            else:
                pulled = self._pulled(head)
                if pulled:
                    return pulled
        return b"".join(written) or None

    def _pulled(self, lines: PendingLines) -> bytes | None:
        try:
            data = lines.pull()
        except BaseException as error:
            data = None
            self.iterator_raised(error)
        if data is None and self._wire and self._wire[0] is lines:
            self._wire.popleft()
            self._pending -= lines.size
        return data

    def _exception_queued(self) -> None:
        self._queue_turn()

    # Callbacks.

    def _take_turn(self) -> None:
        self._queue_turn()
        self._turns.run()

    def _queue_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self._turns.queue(self._turn)

    def _turn(self) -> None:
        """Do the next thing that there is to do, and queue another turn if there may be more."""
        self._queued = False
        self._turns.current = self
        if self._begin is not None:
            (begin, where), self._begin = self._begin, None
            self._call(where, lambda: check_returned(begin(self), where))
        elif self._state is not OPEN:
            self._finish()
        elif self._handler is None:
            pass
        elif self._exceptions:
            self._tell_exception(self._exceptions.pop(0))
            self._queue_turn()
        elif self._waiting_for_peer() <= HIGH_WATER:
            self._take_input()

    def _take_input(self) -> None:
        taken = self.peer._taken()
        if taken is not None:
            self.peer._queue_turn()  # it may read again, or be all delivered
        if self._state is not OPEN:
            return  # an iterator of the peer's has ended it
        if isinstance(taken, _End):
            self._leave_open(taken.reason)
        elif taken is not None:
            self._call("handle_input", self._handler.handle_input, self, taken)  # type: ignore[union-attr]

    def _call(self, where: str, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            self._failed(where, error)
        self._queue_turn()

    def _handler_set(self) -> None:
        self._take_turn()

    # The end.

    def start(self, begin: Callable[[Any], object], where: str) -> None:
        """Have ``begin(self)`` called as the first callback of all."""
        self._begin = begin, where
        self._queue_turn()

    def stop(self) -> None:
        """End it now.  What was written in one piece is with the network already; what iterators would yield is not."""
        if self._state is OPEN:
            self._leave_open(STOPPED)
        if self._state is CLOSING:
            self._wire = deque(item for item in self._wire if isinstance(item, (bytes, _End)))
            self._state = CLOSED
            self._take_turn()

    def hold(self, flag: Flag) -> bool:
        return False  # a callback that waits would keep everybody else's from coming

    def _in_callback(self) -> bool:
        return self._turns.greenlet is getcurrent()

    def undelivered(self) -> bool:
        return self._state is OPEN or (self._state is CLOSING and self._has_output())

    def _has_output(self) -> bool:
        return any(not isinstance(item, _End) for item in self._wire)

    def _leave_open(self, reason: Reason | None) -> None:
        self._state = CLOSING
        self._reason = reason
        self._queue_turn()
        self._put(_End(END_OF_INPUT))

    def _break_off(self) -> None:
        if self._state is not CLOSED:
            self._state = CLOSED
            self._wire.clear()
            self._pending = 0
            self._queue_turn()
            self._put(_End(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))))

    def _finish(self) -> None:
        """It is not open any more: tell the handler, discard what still comes, and be gone when all is delivered."""
        if self._handler is not None:
            self._tell_end()
        if self.peer._wire:
            self.peer._wire.clear()
            self.peer._pending = 0
            self.peer._queue_turn()
        if self._state is CLOSING and not self._has_output():
            self._state = CLOSED
        if self._state is CLOSED:
            self._is_gone()


class TextConnection(Connection):
    """A :class:`Connection` whose peer prints text as it is."""

    __slots__ = ()

    printing_handler = TextPrintingHandler


class Listener(BaseListener):
    """A listener in memory."""

    _owner: _MemoryOutstanding

    def __init__(
        self,
        implementation: Implementation,
        owner: _MemoryOutstanding,
        address: Hashable,
        server: IServer,
        output_limit: int,
    ) -> None:
        super().__init__(owner, server)
        self.address = address
        self._implementation = implementation
        self._output_limit = output_limit
        self._accepting = True

    def connect(self, handler: IClientConnectHandler | None = None, client_address: Any = None) -> Connection | None:
        """Connect *handler* to this listener; without one, return a client connection that prints what it receives."""
        if handler is not None:
            self._implementation.connect_to(self, self.address, handler, client_address)
            return None
        client = _PrintingClient()
        self._implementation.connect_to(self, self.address, client, client_address)
        if client.connection is None:
            raise ConnectionFailed(client.failed)
        return client.connection

    def accept(self, handler: IClientConnectHandler, client_address: Any) -> bool:
        """Make a connection between the server and *handler*; whether this listener still does."""
        if self._accepting:
            server, client = _unconnected(), _unconnected()
            turns = self._owner.turns
            server._set_up(turns, self, client, self.address, client_address, self, self._output_limit)
            client._set_up(turns, self._owner, server, client_address, self.address)
            self._connections[server] = None
            self._owner.add(client)
            server.start(self._server, "the server")
            client.start(handler.connected, "connected")
        return self._accepting

    def _stop_accepting(self) -> None:
        self._implementation.free(self.address)

    def _current_connection(self) -> BaseConnection | None:
        current = self._owner.turns.current
        return current if isinstance(current, BaseConnection) else None

    def _wait_until_empty(self, timeout: float | None) -> None:
        """Nothing waits here, and nothing would come of it."""

    def _call_soon(self, callback: Callable[[], object]) -> None:
        self._owner.turns.queue(callback)


class DatagramListener(BaseDatagramListener):
    """A listener for datagrams in memory."""

    _owner: _MemoryOutstanding

    def __init__(
        self,
        implementation: Implementation,
        owner: _MemoryOutstanding,
        address: Hashable,
        handler: IUDPHandler,
        buffer_size: int,
    ) -> None:
        super().__init__(owner, handler, buffer_size)
        self.address = address
        self._implementation = implementation
        self._open = True

    def receive(self, sender: Hashable, data: bytes) -> None:
        """Take a datagram that is on its way, when it is its turn."""
        self._owner.turns.queue(lambda: self._turn(sender, data))
        self._owner.turns.run()

    def _turn(self, sender: Hashable, data: bytes) -> None:
        if self._open:
            self._owner.turns.current = self
            self._take(sender, len(data), data)

    def _stop_receiving(self) -> None:
        self._implementation.free_udp(self.address)
        self._owner.forget(self)


class Implementation:
    """An implementation in memory, with addresses of its own.  See the top of this module.

    Any hashable is an address.  What handlers raise is logged, as everywhere; only what wants the whole program to end
    leaves the call that led to it.
    """

    def __init__(self) -> None:
        self._closed = False
        self._turns = _Turns()
        self._outstanding = _MemoryOutstanding(self._turns)
        self._listeners: dict[Hashable, Listener] = {}
        self._datagram_listeners: dict[Hashable, DatagramListener] = {}
        self._datagram_sender: Hashable = None  # the address that datagrams come from
        self._connectable: dict[Hashable, deque[Connection]] = {}
        self._fresh = count(1)
        self._failures: Counter[Hashable] = Counter()

    def connect(self, address: Hashable, handler: IClientConnectHandler) -> None:
        """Connect *handler* to the listener on *address*, or to a connection that was made ``connectable`` there.

        It has run its course on return, unless this is called in a callback.  Where there is nobody, *handler* is told
        ``'no such server'``.  A client that connects again from ``failed_connect`` for ever is stopped after a thousand
        times: the call that it began with raises :class:`~ngi_gevent.NGIError`.
        """
        self.connect_to(None, address, handler, None)

    def connect_to(
        self, listener: Listener | None, address: Hashable, handler: IClientConnectHandler, client_address: Any
    ) -> None:
        """Connect *handler* to *listener*, or to whoever is at *address* when it is its turn."""
        self._check_open()
        check_client_handler(handler)
        _check_hashable(address)
        if self._turns.running and getattr(handler, "waits", False):
            raise Deadlock("waiting in a callback for a connection in memory, which is made after the callback")
        if client_address is None:
            client_address = self._fresh_address()
        if not self._turns.running:
            self._failures.clear()
        self._turns.queue(lambda: self._connect(listener, address, handler, client_address))
        self._turns.run()

    def listener(
        self,
        address: Hashable,
        handler: IServer,
        *,
        output_limit: int = OUTPUT_LIMIT,
        backlog: int = 0,
        reuse_port: bool = False,
        keep_alive: bool = False,
    ) -> Listener:
        """Have every connection to *address* given to *handler*, a server; None makes a fresh address.

        The options are those of listeners on sockets.  Only *output_limit* means something in memory.
        """
        self._check_open()
        _check_hashable(address)
        check_server(handler)
        check_count("output_limit", output_limit)
        check_count("backlog", backlog)
        if address is None:
            address = self._fresh_address()
        _check_free(address, self._listeners)
        listener = self._listeners[address] = Listener(self, self._outstanding, address, handler, output_limit)
        self._outstanding.add(listener)
        return listener

    def udp(self, address: Hashable, data: Data) -> None:
        """Send *data* to the listener for datagrams on *address*; where there is nobody, it vanishes.

        It has been handled on return, unless this is called in a callback.  All datagrams of an implementation come
        from the same address.
        """
        if address is None:
            raise TypeError("None is an address only to listen on, and nobody can be sent a datagram there")
        _check_hashable(address)
        data = as_bytes(data)
        self._check_open()
        if self._datagram_sender is None:
            self._datagram_sender = self._fresh_address()
        listener = self._datagram_listeners.get(address)
        if listener is not None:
            listener.receive(self._datagram_sender, data)

    def udp_listener(self, address: Hashable, handler: IUDPHandler, buffer_size: int = BUFFER_SIZE) -> DatagramListener:
        """Have every datagram to *address* given to *handler*; None makes a fresh address.

        It may be one that a listener for connections has too, as with the ports of TCP and UDP.  A datagram longer than
        *buffer_size* is dropped, with a warning of the logger ``ngi_gevent.datagram``.
        """
        self._check_open()
        _check_hashable(address)
        check_datagram_handler(handler)
        check_buffer_size(buffer_size)
        if address is None:
            address = self._fresh_address()
        _check_free(address, self._datagram_listeners)
        listener = DatagramListener(self, self._outstanding, address, handler, buffer_size)
        self._datagram_listeners[address] = listener
        self._outstanding.add(listener)
        return listener

    def connectable(self, address: Hashable, connection: Connection) -> None:
        """Have the next ``connect`` to *address* that finds no listener get *connection*, which a test has prepared."""
        _check_hashable(address)
        self._connectable.setdefault(address, deque()).append(connection)

    def wait(self, timeout: float | None = None) -> None:
        """Raise :class:`~ngi_gevent.Timeout` if anything is outstanding, since waiting would not change that."""
        self._check_open()
        check_timeout(timeout)
        if self._turns.current is not None:
            raise Deadlock("wait was called in a callback of one of the connections that it would wait for")
        if self._outstanding:
            raise Timeout(f"outstanding, and nothing will change that: {self._outstanding}")

    def close(self) -> None:
        """Close all listeners and end all connections; whatever is asked for afterwards raises.  Twice is harmless."""
        self._closed = True
        self._outstanding.stop()

    def free(self, address: Hashable) -> None:
        """Have *address* listened on no more."""
        del self._listeners[address]

    def free_udp(self, address: Hashable) -> None:
        """Have datagrams to *address* received no more."""
        del self._datagram_listeners[address]

    def _connect(
        self, listener: Listener | None, address: Hashable, handler: IClientConnectHandler, client_address: Any
    ) -> None:
        listener = listener or self._listeners.get(address)
        prepared = self._connectable.get(address)
        if listener is not None and listener.accept(handler, client_address):
            return
        if prepared:
            connection = prepared.popleft()
            connection.peer_address = connection.peer.local_address = address
            connection.start(handler.connected, "connected")
            connection._take_turn()
            return
        self._failures[address] += 1
        if self._failures[address] > MAX_RECONNECTS:
            self._turns.error = NGIError(f"a client connected to {address!r} from failed_connect for ever")
            return
        try:
            handler.failed_connect("no such server")
        except BaseException as error:
            self._outstanding.handler_raised(address, "failed_connect", error)

    def _check_open(self) -> None:
        if self._closed:
            raise ImplementationClosed("this implementation was closed")

    def _fresh_address(self) -> tuple[str, int]:
        return "in memory", next(self._fresh)


def _unconnected() -> Connection:
    """One side of a connection, to be set up."""
    return Connection.__new__(Connection)


def _check_hashable(address: object) -> None:
    try:
        hash(address)
    except TypeError:
        raise TypeError(f"an address in memory is hashable; got {address!r:.100}") from None


def _check_free(address: Hashable, listeners: Container[Hashable]) -> None:
    if address in listeners:
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {address!r}")


#: The implementation behind this module's ``connect`` and its fellows.
default = Implementation()
connect = default.connect
connectable = default.connectable
listener = default.listener
udp = default.udp
udp_listener = default.udp_listener
wait = default.wait
