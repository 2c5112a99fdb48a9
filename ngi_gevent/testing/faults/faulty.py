"""An implementation around another one, whose network does what a plan says: nothing that TCP and UDP never do.

What is delivered to a handler depends on the plan and on what the other side writes, and not on how fast that comes:
so the callbacks of a connection are the same, whatever the implementation below.  For that, each side of a connection
between two that belong to the same :class:`Faulty` knows where the other has ended what it wrote in one go.  The input
from a stranger is cut as it comes.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from ngi_gevent.adapters import bottom
from ngi_gevent.core.connection import END_OF_INPUT, STOPPED, as_bytes, as_iterator
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import NGIError
from ngi_gevent.testing.faults.plan import Fate, Faults, Input, Plan
from ngi_gevent.testing.faults.wrapping import (
    WrappingClient,
    WrappingConnection,
    WrappingDatagramListener,
    WrappingImplementation,
    WrappingListener,
)

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IClientConnectHandler, Reason

__all__ = ["Faulty", "recent_plans"]

NO_FAULTS = Faults()

#: The plans that were carried out last, for who shows them when a test fails.
recent_plans: deque[Plan] = deque(maxlen=10)


class Faulty(WrappingImplementation):
    """An implementation around *implementation*, whose network does what *plan* says.

    The faults of a connection are those of its connect, in their order.  One that comes from elsewhere has the next
    ones when its first input comes.  Over a Unix socket all come from elsewhere, since they have no address.
    """

    def __init__(self, implementation: Any, plan: Plan) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"a plan is a Plan; got {plan!r:.100}")
        super().__init__(implementation)
        self.plan = plan
        self._connections = 0
        self._datagrams = 0
        self._late: list[tuple[Callable[[Any, bytes], None], Any, bytes]] = []
        self._links: dict[Any, _Link] = {}
        recent_plans.append(plan)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.implementation!r}, {self.plan!r})"

    def next_faults(self) -> Faults:
        """The faults of the next connection."""
        self._connections += 1
        return self.plan.connection(self._connections - 1)

    def link(self, client_address: Any, server_address: Any) -> _Link:
        """What the sides of the connection between these addresses know of each other."""
        if not client_address:
            return _Link()
        return self._links.setdefault((client_address, server_address), _Link())

    def unlink(self, client_address: Any, server_address: Any) -> None:
        """A side of the connection between these addresses is gone; who has the same ones later is somebody else."""
        link = self._links.get((client_address, server_address))
        if link is not None:
            link.gone += 1
            if link.gone == len(link.sides):
                del self._links[client_address, server_address]

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        return _FaultyConnection(self, connection, control)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        faults = self.next_faults()
        return (_RefusedClient if faults.refused else _FaultyClient)(self, handler, faults)

    def connect(self, address: Any, handler: IClientConnectHandler, **options: Any) -> None:
        if self.plan.connection(self._connections).refused:
            nobody = self.implementation.listener(None, lambda connection: connection.abort())
            nobody.close()
            address = nobody.address
        super().connect(address, handler, **options)

    def wrap_datagram_listener(self, listener: Any) -> WrappingDatagramListener:
        return _FaultyDatagramListener(self, listener)

    def udp(self, address: Any, data: Data) -> None:
        self.send_datagram(self.implementation.udp, address, data)

    def send_datagram(self, send: Callable[[Any, bytes], None], address: Any, data: Data) -> None:
        """Have *send* send the next datagram, as often as is planned, and when."""
        data = as_bytes(data)
        fate: Fate = self.plan.datagram(self._datagrams)
        self._datagrams += 1
        if fate == "late":
            self._late.append((send, address, data))
        elif fate != "lost":
            late, self._late = self._late, []
            for _ in range(2 if fate == "doubled" else 1):
                send(address, data)
            for send_late, *datagram in late:
                with suppress(OSError, NGIError):  # the call that this is about has returned long ago
                    send_late(*datagram)


class _FaultyDatagramListener(WrappingDatagramListener):
    def __init__(self, faulty: Faulty, listener: Any) -> None:
        super().__init__(listener)
        self._faulty = faulty

    def send(self, address: Any, data: Data) -> None:
        self._faulty.send_datagram(self.listener.send, address, data)


class _RefusedClient(WrappingClient):
    """Is told that the connect failed, also if somebody should have taken the address in the meantime."""

    def __init__(self, faulty: Faulty, handler: IClientConnectHandler, faults: Faults) -> None:
        super().__init__(faulty, handler)

    def connected(self, connection: Any) -> object:
        connection.abort()
        return self.failed_connect(None)

    def failed_connect(self, reason: Any) -> object:
        return super().failed_connect(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))


class _FaultyClient(WrappingClient):
    def __init__(self, faulty: Faulty, handler: IClientConnectHandler, faults: Faults) -> None:
        super().__init__(faulty, handler)
        self._faults = faults

    def connected(self, connection: Any) -> object:
        wrapped = _FaultyConnection(self._implementation, connection, None, self._faults)
        return wrapped.in_callback(self._handler.connected, wrapped)


class _Link:
    """What the two sides of a connection know of each other."""

    def __init__(self) -> None:
        self.faults: Faults | None = None
        self.sides: list[_FaultyConnection] = []
        self.gone = 0
        #: Why the plan has ended the connection, if it has.
        self.reason: Reason | None = None

    def other(self, side: _FaultyConnection) -> _FaultyConnection | None:
        for other in self.sides:
            if other is not side:
                return other
        return None


class _Cuts:
    """Where what one side writes is cut, before the plan cuts it: where it has ended what it wrote in one go."""

    def __init__(self) -> None:
        self.written = 0
        self.ends: deque[int] = deque()

    def end(self) -> None:
        """All that was written up to now is one, and what follows is another."""
        if self.written and not (self.ends and self.ends[-1] == self.written):
            self.ends.append(self.written)

    def after(self, position: int) -> int | None:
        """The next place after *position*, which only grows."""
        while self.ends and self.ends[0] <= position:
            self.ends.popleft()
        return self.ends[0] if self.ends else None


class _FaultyConnection(WrappingConnection):
    """One side of a connection: it tells the other where its output is cut, and does to its input what is planned."""

    def __init__(
        self, faulty: Any, connection: Any, control: WrappingListener | None, faults: Faults | None = None
    ) -> None:
        super().__init__(connection, control)
        self._faulty: Faulty = faulty
        here, there = connection.local_address, connection.peer_address
        addresses = (here, there) if control is None else (there, here)
        self._link = faulty.link(*addresses)
        self._link.sides.append(self)
        if faults is not None or not self._faulty.plan.connections:
            self._link.faults = faults or NO_FAULTS
        connection.when_closed(lambda: faulty.unlink(*addresses))
        # Output.
        self.cuts = _Cuts()
        self._pulls = False  # whether an iterable is being pulled from
        self._behind: deque[Any] = deque()  # that one, and what was written after it: iterators and bursts
        self._burst: list[bytes] | None = None  # what is being written in one go, and has to wait
        self._in_callback_depth = 0
        self.aborted = False
        # Input.
        self._arrived = bytearray()
        self._position = 0  # bytes of input that were delivered
        self._pieces = 0  # how many pieces that were
        self._waited = False  # whether the next piece has had its delay
        self._plan: Input | None = None  # once it is known
        self._over_at: int | None = None
        self._deaf = False

    # Output: the other side is told where it is cut.

    def in_callback(self, call: Any, *arguments: Any) -> Any:
        """Call the application, which writes in one go what it writes meanwhile."""
        self._in_callback_depth += 1
        try:
            return call(*arguments)
        finally:
            self._in_callback_depth -= 1
            self._burst = None
            self.cuts.end()

    def _writes(self, size: int) -> None:
        self.cuts.written += size
        if not self._in_callback_depth:
            self.cuts.end()

    def write(self, data: Data) -> None:
        data = as_bytes(data)
        if not self.connection:
            self.connection.write(data)  # raises
        elif not self._pulls:
            self._writes(len(data))  # first, since in memory it may be delivered at once
            self.connection.write(data)
        else:
            if self._burst is None:
                self._burst = []
                self._behind.append(self._burst)
            self._burst.append(data)
            if not self._in_callback_depth:
                self._burst = None

    def writelines(self, data: Iterable[Data]) -> None:
        if not self.connection or (self._link.faults == NO_FAULTS and not self._pulls):
            self.connection.writelines(data)
            return
        self._behind.append(as_iterator(data))
        self._burst = None
        if not self._pulls:
            self._pulls = True
            self.connection.writelines(self._pulling())

    def _pulling(self) -> Iterator[bytes]:
        """All that waits behind an iterable, and that one first, each piece by itself: when they come, nobody knows."""
        try:
            while self._behind:
                if isinstance(self._behind[0], list):
                    self._burst = None
                    item: Any = b"".join(self._behind.popleft())
                else:
                    item = next(self._behind[0], None)
                if item is None:
                    self._behind.popleft()
                else:
                    item = as_bytes(item)
                    self.cuts.end()
                    self.cuts.written += len(item)
                    self.cuts.end()
                    yield item
            self._pulls = False
        except Exception:
            self._behind.popleft()  # and no more of that one, but of the others
            self._pulls = bool(self._behind and self.connection)
            if self._pulls:
                self.connection.writelines(self._pulling())
            raise

    # Input: what is planned.

    def handle_input(self, connection: Any, data: bytes) -> None:
        if self._link.faults is None:
            self._link.faults = self._faulty.next_faults()
        faults = self._link.faults
        if faults == NO_FAULTS:
            self.in_callback(super().handle_input, connection, data)
            return
        if self._plan is None:
            self._plan = faults.client if self._control is None else faults.server
            self._over_at = self._plan.over_at()
        self._arrived += data
        self._go_on(self._plan)

    def _go_on(self, plan: Input) -> None:
        """Deliver what has arrived, piece by piece, as far as it is planned and the turn of it."""
        while not self._deaf and self.connection and (size := self._next_size(plan)):
            if plan.delays and not self._waited:
                self._waited = True
                if self._postponed(plan, plan.delays[self._pieces % len(plan.delays)]):
                    return
                continue
            self._waited = False
            self._pieces += 1
            self._position += size
            piece = bytes(self._arrived[:size])
            del self._arrived[:size]
            self.in_callback(self._handler.handle_input, self, piece)
            if self._position == self._over_at and self.connection:
                self._over(plan)

    def _next_size(self, plan: Input) -> int:
        """Bytes of the next piece; 0 if they have not all arrived."""
        arrived = len(self._arrived)
        other = self._link.other(self)
        end = None if other is None else other.cuts.after(self._position)
        size = arrived if end is None else end - self._position
        if plan.pieces:
            size = min(size, plan.pieces[self._pieces % len(plan.pieces)])
        if self._over_at is not None:
            size = min(size, self._over_at - self._position)
        return size if size <= arrived else 0

    def _postponed(self, plan: Input, turns: int) -> bool:
        """Give others so many turns; whether the rest is done later, since nothing waits here."""
        postpone = getattr(bottom(self.connection), "postpone", None)
        if postpone is None:
            for _ in range(turns):
                _let_others_have_a_turn()
        elif turns:
            self._postpone(postpone, plan, turns)
        return bool(turns and postpone)

    def _postpone(self, postpone: Any, plan: Input, turns: int) -> None:
        if turns:
            postpone(lambda: self._postpone(postpone, plan, turns - 1))
        else:
            self._go_on(plan)

    def _over(self, plan: Input) -> None:
        """There is no more input, as planned."""
        self._deaf = True
        if self._position == plan.stops:
            self._stop_reading()
            return
        reason: Reason = END_OF_INPUT
        if self._position == plan.resets:
            reason = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            if self._link.other(self) is None:
                self.connection.abort()  # a stranger has nobody else to hear it from
        self._link.reason = reason
        self.connection.close()
        super().handle_close(self.connection, reason)

    def _stop_reading(self) -> None:
        connection = bottom(self.connection)
        stop = getattr(connection, "test_stop_reading", None)
        if stop is not None:
            stop()
        else:
            connection.hold(Flag())  # which nobody sets: the end of the connection ends it

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.in_callback(super().handle_exception, connection, exception)

    def abort(self) -> None:
        self.aborted = True
        self.connection.abort()

    def handle_close(self, connection: Any, reason: Reason) -> None:
        other = self._link.other(self)
        if self._link.reason is not None and reason != STOPPED:
            reason = self._link.reason
        elif isinstance(reason, OSError) and other is not None and not other and not other.aborted:
            # It wrote when the other side had ended in order, and had no more patience to hear it out.
            reason = END_OF_INPUT
        super().handle_close(connection, reason)


def _let_others_have_a_turn() -> None:
    """Wait until the loop has looked at everybody else: a timer would take longer, and a callback would not."""
    hub = get_hub()
    watcher = hub.loop.async_()
    hub.loop.run_callback(watcher.send)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
