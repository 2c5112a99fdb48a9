"""Listeners, on sockets or in memory: their connections, and the ways to close them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.core.checks import (
    as_positive_timeout,
    as_timeout,
    check_count,
    check_file_options,
    check_flag,
    check_max_connections,
)
from ngi_gevent.core.connection import BaseConnection
from ngi_gevent.core.counters import Counters, name_of_end
from ngi_gevent.core.limits import check_limits
from ngi_gevent.core.output import unsent_size_of
from ngi_gevent.errors import Deadlock
from ngi_gevent.interfaces import IListener, ListenerMetrics, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IServer, IServerConnection, Reason

__all__ = ["BaseListener", "ListenerOwner", "check_listen_options", "log_refusal"]

#: The largest backlog that a system call can take.
MOST_QUEUED = 2**31 - 1


def check_listen_options(
    backlog: Any,
    max_connections: Any,
    limits: Any,
    slow_callback: Any,
    reuse_port: Any,
    dual_stack: Any,
    mode: Any,
    owner: Any,
) -> None:
    """Check the options of a listener, except the options of its connections.

    :raises TypeError: an option has the wrong type.
    :raises ValueError: an option has an invalid value.
    """
    check_count("backlog", backlog)
    if backlog > MOST_QUEUED:
        raise ValueError(f"backlog must be an int <= {MOST_QUEUED}; got {backlog!r}")
    check_max_connections(max_connections)
    check_limits(limits)
    as_positive_timeout(slow_callback, "slow_callback")
    check_flag("reuse_port", reuse_port)
    check_flag("dual_stack", dual_stack)
    check_file_options(mode, owner)


@contextmanager
def log_refusal(address: Any) -> Iterator[None]:
    """Log an ``OSError`` that leaves this block, in which a listener on *address*, or on several, is made."""
    try:
        yield
    except OSError as error:
        logs.listeners.warning("unable to listen on %r: %s", address, logs.format_reason(error))
        raise


def _log_raised(address: Any, where: str, error: BaseException, level: int = logging.ERROR) -> None:
    """Log an exception in a handler of the listener on *address*."""
    logs.listeners.log(level, "listener on %r: %s raised an exception", address, where, exc_info=error)


class ListenerOwner(Protocol):
    """The methods that a listener calls on the implementation that made it."""

    def forget(self, item: Any) -> None:
        """Forget *item*: the listener is closed, and its last connection is gone."""

    def handler_raised(self, peer: Any, where: str, error: BaseException, log: logs.LogRaised = ...) -> None:
        """Report an exception in a handler, which *log* logs if nothing else takes it."""


@documented_by(IListener)
class BaseListener:
    """The connections of a listener, and its end.  See ``IListener`` for the contract."""

    def __init__(self, owner: ListenerOwner, server: IServer, counters: Counters | None = None) -> None:
        self.addresses: tuple[Any, ...] = ()
        self._owner = owner
        self._server = server
        self._accepting = False
        self._connections: dict[BaseConnection, None] = {}  # all that are not gone, in the order of their arrival
        self._when_empty: list[Callable[[], object]] = []
        self._counters = counters or Counters()

    def __repr__(self) -> str:
        state = "accepting" if self._accepting else "closed"
        addresses = ", ".join(map(repr, self.addresses))
        return f"<{type(self).__name__} on {addresses}, {state}, connections: {len(self._connections)}>"

    @property
    def address(self) -> Any:
        return self.addresses[0]

    def connections(self) -> Iterator[IServerConnection]:
        # Copied in one step, because connections come and go while other threads iterate.
        return iter([connection for connection in list(self._connections) if connection])

    def metrics(self) -> ListenerMetrics:
        counters = self._counters
        # Copied in one step, because other threads call this.
        connections = list(self._connections)
        return ListenerMetrics(
            self._accepting,
            len(connections),
            counters.accepted,
            counters.limited.copy(),
            counters.failed_handshakes,
            dict(counters.ended),
            *self._bytes(connections),
            sum(connection.output_pending for connection in connections),
            *self._times(),
        )

    def close(self, handler: Callable[[Any], object] | None = None) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"the handler given to close must be callable; got {handler!r:.100}")
        was_accepting = self._accepting
        self._stop_listening(serve_queued=handler is not None)
        if handler is None:
            for connection in list(self._connections):
                if connection.is_live():
                    connection.stop()
                else:
                    connection.limit_delivery()
        elif self._connections:
            self._when_empty.append(lambda: self._call_soon(lambda: self._call_close_handler(handler)))
        else:
            self._call_close_handler(handler)
        if was_accepting:
            self._log_closed()

    def stop(self) -> None:
        self.close()

    def close_wait(self, timeout: float | None = None) -> int:
        timeout = as_timeout(timeout)
        if self._current_connection() in self._connections:
            raise Deadlock("close_wait cannot end in a callback of a connection it waits for; use close(callback)")
        if self._accepting:
            self._stop_listening(serve_queued=True)
            self._log_closed()
        self._wait_until_empty(timeout)
        left = list(self._connections)
        ended = sum(connection.has_unfinished_output() for connection in left)
        for connection in left:
            connection.stop()
        self._wait_until_empty(0)  # handle_close must run before the caller continues, and perhaps exits
        return ended

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peers have not taken; None if no connection is left."""
        return unsent_size_of(list(self._connections))

    # Called by connections.

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        self._owner.handler_raised(peer, where, error)

    def connection_ended(self, reason: Reason) -> None:
        """Count the end of a connection."""
        self._counters.ended[name_of_end(reason)] += 1

    def connection_gone(self, connection: BaseConnection) -> None:
        del self._connections[connection]
        self._check_empty()

    # Overridden by each kind of listener.

    def _bytes(self, connections: list[Any]) -> tuple[int | None, int | None]:
        """Return how many bytes ended connections and *connections* have received and sent; None if unknown."""
        return None, None

    def _times(self) -> tuple[float | None, float | None]:
        """Return the seconds of processor time of the hub's thread, and of its longest turn; None if unknown."""
        return None, None

    def _stop_accepting(self, *, serve_queued: bool) -> None:
        """Stop accepting, and free the address.

        :param serve_queued: whether to accept the connections that are in the kernel's queue now.
        """
        raise NotImplementedError

    def _current_connection(self) -> BaseConnection | None:
        """Return the connection whose callback the caller is in; None outside of callbacks."""
        raise NotImplementedError

    def _wait_until_empty(self, timeout: float | None) -> None:
        """Wait until there are no connections, for *timeout* seconds at most."""
        raise NotImplementedError

    def _call_soon(self, callback: Callable[[], object]) -> None:
        """Call the application's *callback*, soon, on a greenlet that may block."""
        raise NotImplementedError

    def _stop_listening(self, *, serve_queued: bool = False) -> None:
        if self._accepting:
            self._accepting = False
            self._stop_accepting(serve_queued=serve_queued)
            self._check_empty()

    def _log_opened(self) -> None:
        for address in self.addresses:
            logs.listeners.info("listening on %r", address)

    def _log_closed(self) -> None:
        for address in self.addresses:
            logs.listeners.info("no longer listening on %r", address)

    def _check_empty(self) -> None:
        if self._connections or self._accepting:
            return
        self._owner.forget(self)
        callbacks, self._when_empty = self._when_empty, []
        for callback in callbacks:
            callback()

    def _call_close_handler(self, handler: Callable[[Any], object]) -> None:
        try:
            handler(self)
        except BaseException as error:
            self._owner.handler_raised(self.address, "the handler given to close", error, _log_raised)
