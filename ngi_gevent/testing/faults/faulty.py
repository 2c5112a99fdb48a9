"""An implementation around another one, whose network follows a plan.  It does only what TCP and UDP can do.

The input of a handler depends on the plan and on the output of the other side, but not on the time of arrival.  So the
callbacks of a connection are the same on every wrapped implementation.  This is possible because each side of a
connection within one :class:`Faulty` has the positions where the bursts of the other side end.  Input from elsewhere is
cut as it arrives.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.checks import as_bytes
from ngi_gevent.errors import NGIError
from ngi_gevent.testing.faults.connection import FaultyConnection
from ngi_gevent.testing.faults.link import Links
from ngi_gevent.testing.faults.plan import Fate, Faults, Plan
from ngi_gevent.testing.faults.wrapping import (
    WrappingClient,
    WrappingConnection,
    WrappingDatagramListener,
    WrappingImplementation,
    WrappingListener,
)

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IClientConnectHandler

__all__ = ["Faulty", "recent_plans"]

#: The plans that were carried out last, which are shown when a test fails.
recent_plans: deque[Plan] = deque(maxlen=10)


class Faulty(WrappingImplementation):
    """An implementation around *implementation*, whose network follows *plan*.

    Connections get the faults of the plan in the order of their connection attempts.  A connection from elsewhere gets
    the next faults when its first input arrives.  Over a Unix socket, all connections count as from elsewhere, since
    their clients have no address.
    """

    def __init__(self, implementation: Any, plan: Plan) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan; got {plan!r:.100}")
        super().__init__(implementation)
        self.plan = plan
        self._links = Links(plan)
        self._datagrams = _Datagrams(plan)
        recent_plans.append(plan)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.implementation!r}, {self.plan!r})"

    def connect(self, address: Any, handler: IClientConnectHandler, **options: Any) -> None:
        if self._links.peek_faults().refused:
            unused = self.implementation.listener(None, lambda connection: connection.abort())
            unused.close()
            address = unused.address
        super().connect(address, handler, **options)

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        return FaultyConnection(self._links, connection, control)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        faults = self._links.take_faults()
        if faults.refused:
            return _RefusedClient(self, handler)
        return _FaultyClient(self, handler, self._links, faults)

    def wrap_datagram_listener(self, listener: Any) -> WrappingDatagramListener:
        return _FaultyDatagramListener(listener, self._datagrams)

    def udp(self, address: Any, data: Data) -> None:
        self._datagrams.send(self.implementation.udp, address, data)


class _RefusedClient(WrappingClient):
    """A client whose connection attempt fails, even if another listener has taken the unused address since."""

    def connected(self, connection: Any) -> object:
        connection.abort()
        return self.failed_connect(None)

    def failed_connect(self, reason: Any) -> object:
        return super().failed_connect(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))


class _FaultyClient(WrappingClient):
    """A client whose connection has the faults of its connection attempt."""

    def __init__(self, faulty: Faulty, handler: IClientConnectHandler, links: Links, faults: Faults) -> None:
        super().__init__(faulty, handler)
        self._links = links
        self._faults = faults

    def _wrap(self, connection: Any) -> WrappingConnection:
        return FaultyConnection(self._links, connection, None, self._faults)


class _Datagrams:
    """The datagrams of one implementation.  Each has the next fate in the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sent = 0
        self._late: list[tuple[Callable[[Any, bytes], None], Any, bytes]] = []

    def send(self, send: Callable[[Any, bytes], None], address: Any, data: Data) -> None:
        """Send the next datagram with *send*, as often as planned, and late datagrams after it."""
        data = as_bytes(data)
        fate: Fate = self._plan.datagram(self._sent)
        self._sent += 1
        if fate == "late":
            self._late.append((send, address, data))
        elif fate != "lost":
            late, self._late = self._late, []
            for _ in range(2 if fate == "doubled" else 1):
                send(address, data)
            for send_late, *datagram in late:
                with suppress(OSError, NGIError):  # the call that sent the datagram has returned long ago
                    send_late(*datagram)


class _FaultyDatagramListener(WrappingDatagramListener):
    def __init__(self, listener: Any, datagrams: _Datagrams) -> None:
        super().__init__(listener)
        self._datagrams = datagrams

    def send(self, address: Any, data: Data) -> None:
        self._datagrams.send(self.listener.send, address, data)
