"""Accepting connections with gevent's ``StreamServer``, within limits.

Accepting pauses in three cases.  Until it resumes, the kernel queues new connections.

* There are ``max_connections`` connections.  Accepting resumes when one of them is gone.
* There are ``max_handshakes`` pending handshakes.  Accepting resumes when one of them is over.
* The kernel is out of descriptors or memory.  The acceptor tries again, soon at first and then less often, and whenever
  a connection of the listener is gone.  Open connections are not affected.

Each case logs an entry when the pause begins, and another when it ends.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import get_hub
from gevent.server import StreamServer

from ngi_gevent.core import logs
from ngi_gevent.core.counters import SYSTEM
from ngi_gevent.sockets.binding import Binding
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.sockets.network import Network, Socket

if TYPE_CHECKING:
    from ngi_gevent.sockets.crowd import Crowd

__all__ = ["Acceptor", "SharedAcceptor", "default_max_connections"]

#: Seconds before accepting is tried again after the kernel refused.  They double with each failure, up to the second.
FIRST_RETRY, LAST_RETRY = 0.01, 0.5

#: Seconds without a refusal after which a pause has ended.
QUIET = 1.0

#: Errors of one queued connection.  The acceptor ignores them, and accepts the next one.
OF_THE_CONNECTION = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "EINTR", "ENETDOWN", "ENETUNREACH"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENOPROTOOPT", "ENONET"),
    )
    if hasattr(errno, name)  # some systems lack some of them
)


#: Descriptors that the default of ``max_connections`` leaves to the program, at least.
RESERVED = 32

#: Connections that a listener on one address accepts, at most, in one turn of the loop.
AT_ONCE = 16


def default_max_connections(network: Network) -> int:
    """Return 90% of the descriptors that the process can open, and at least ``RESERVED`` fewer than all of them."""
    descriptors = network.max_descriptors()
    if descriptors is None:
        return sys.maxsize
    return max(1, descriptors - max(RESERVED, descriptors // 10))


class Acceptor(StreamServer):
    """A server that accepts connections on a socket, and calls ``accepted(sock, peer_address)`` on the hub for each.

    The callee closes the sockets, and adds their connections to *connections*, of which there are never more than
    *max_connections*.  While *crowd* has no room for another handshake, the acceptor does not accept.  If its socket is
    not a listening socket any more, it calls ``gave_up()``.  *turns* has all acceptors of the listener; the most
    recently used are last.
    """

    max_accept = 1  # for gevent's server, which calls do_handle with the connection

    #: Connections that are accepted in one turn, at most, unless the listener has other sockets.
    at_once = AT_ONCE

    def __init__(
        self,
        network: Network,
        binding: Binding,
        accepted: Callable[[Socket, Any], None],
        connections: Collection[object],
        max_connections: int,
        crowd: Crowd,
        gave_up: Callable[[], None],
        turns: list[Acceptor],
    ) -> None:
        self._network = network
        self._binding = binding
        self._connections = connections
        self._max_connections = max_connections
        self._crowd = crowd
        self._gave_up = gave_up
        self._turns = turns
        turns.append(self)
        self._time = Dispatcher.current().accepting
        loop = get_hub().loop
        address = binding.socket.getsockname()
        limited = crowd.counters.limited
        self._full = PauseLog(loop, address, lambda: self._room() < 1, limited)
        self._retry = Retry(loop, address, self._try_again, limited)
        # Otherwise, a program that waits for connections would get LoopExit during a pause.
        self._keep_running = loop.async_()
        self._keep_running.start(lambda: None)
        listening: Any = binding.socket  # gevent needs only the methods of Socket
        super().__init__(listening, accepted, spawn=None)

    def connection_gone(self) -> None:
        """Accept again if there is room.  The listener calls this when a connection is gone."""
        if self._retry.is_pending:
            self._retry.start(0)
        else:
            self.handshake_over()

    def handshake_over(self) -> None:
        """Accept again if there is room, but not if the kernel has refused."""
        if not (self._retry.is_pending or self.closed):
            self.start_accepting()

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, so that no client can connect."""
        self._binding.remove_file()

    def leave_to_parent(self) -> None:
        """Close only the descriptor and the objects of the hub, in a forked child."""
        self._binding.leave_to_parent()
        self.close()

    def close(self) -> None:
        self.remove_file()
        self._retry.close()
        self._full.close()
        self._keep_running.close()
        if not self.closed:
            self._close_socket()
        super().close()

    def _close_socket(self) -> None:
        with suppress(OSError):  # not all systems shut down listening sockets
            self.socket.shutdown(socket.SHUT_RDWR)  # otherwise, a child with the descriptor would go on listening
        self.socket.close()

    def close_taking_queued(self) -> list[tuple[Any, Any]]:
        """Close, and return the connections that were queued, as far as ``max_connections`` allows.

        The kernel resets connections that arrive between the last ``accept`` and the close.  That cannot be prevented,
        so the close follows at once.
        """
        self.stop_accepting()
        queued: list[tuple[Any, Any]] = []
        while len(self._connections) + len(queued) < self._max_connections and (accepted := self._accept()):
            queued.append(accepted)
        if not self.closed:
            self._close_socket()
        self.close()
        return queued

    # Called by gevent's server.

    def full(self) -> bool:
        if self.closed:
            return True
        if self._room() > 0:
            return False
        self._full.note(*self._limit())
        return True

    def do_read(self) -> Any:
        return None if self._is_turn_of_another() else self._accept()

    def do_handle(self, sock: Socket, peer_address: Any) -> None:
        left = self.at_once if len(self._turns) == 1 else 1
        until = self._time.share()
        accepted: Any = sock, peer_address  # gevent's handle expects its own sockets
        while accepted:
            self.handle(*accepted)
            left -= 1
            if not left or self.closed or self._room() < 1 or self._time.now() > until:
                break
            accepted = self._accept()

    def _is_turn_of_another(self) -> bool:
        """Return whether there is room for one connection only, and another socket must accept it.

        At a limit, the loop would give all room to the same socket.  The clients of the others would wait until its
        queue is empty.
        """
        if len(self._turns) == 1 or self._room() > 1:
            return False
        earlier = self._turns[: self._turns.index(self)]
        return any(other._is_accepting() and self._network.has_input(other.socket) for other in earlier)

    def _is_accepting(self) -> bool:
        return self.started and not self._retry.is_pending

    def _accept(self) -> Any:
        try:
            accepted = self._network.accept(self.socket)
        except OSError as error:
            if error.errno not in OF_THE_CONNECTION:
                self._system_refused(error)
            return None
        self._retry.succeeded()
        if accepted is not None:
            self._turns.remove(self)
            self._turns.append(self)
        return accepted

    def _room(self) -> float:
        """Return how many more connections can be accepted now."""
        return min(self._max_connections - len(self._connections), self._crowd.room())

    def _limit(self) -> tuple[str, str]:
        """Return the limit that is reached, and its description for the log."""
        if len(self._connections) >= self._max_connections:
            return "max_connections", f"max_connections={self._max_connections} reached"
        return "max_handshakes", self._crowd.full_reason()

    # Refusals by the kernel.

    def _system_refused(self, error: OSError) -> None:
        if self.is_fatal_error(error):
            self._gave_up()
            reason = logs.format_reason(error.strerror)
            logs.listeners.error(
                "listener on %r stopped, because its socket was closed elsewhere: %s; call listener again",
                *(self.address, reason),
            )
            return
        self.stop_accepting()
        self._retry.refused(error.strerror)

    def _try_again(self) -> None:
        self.start_accepting()
        # Even if no connection is queued, this shows whether the kernel still refuses.
        accepted = None if self.full() else self.do_read()
        if accepted:
            self.do_handle(*accepted)


class SharedAcceptor(Acceptor):
    """An acceptor on a socket that the caller bound, which other processes can have, too."""

    at_once = 1  # The kernel has also woken the other processes, and each accepts one connection.

    def _accept(self) -> Any:
        accepted = super()._accept()
        # The others accept the next connections.  Without this, one of four processes accepts 23 or more of 40
        # connections; with it, 12.
        self._network.let_others_run()
        return accepted

    def _close_socket(self) -> None:
        self.socket.close()


class Retry:
    """The next attempt to accept, after the kernel has refused."""

    def __init__(self, loop: Any, address: Any, again: Callable[[], None], counts: dict[str, int]) -> None:
        self._loop = loop
        self._again = again
        self._after = FIRST_RETRY
        self._timer: Any = None
        self._log = PauseLog(loop, address, lambda: self.is_pending, counts)
        #: Whether there will be another attempt.
        self.is_pending = False

    def refused(self, reason: object) -> None:
        """Note that the kernel has refused for *reason*.  Try again after a time that doubles until ``succeeded``."""
        self._log.note(SYSTEM, reason)
        self.start(self._after)
        self._after = min(2 * self._after, LAST_RETRY)

    def succeeded(self) -> None:
        """Note that the kernel has not refused."""
        self._after = FIRST_RETRY

    def start(self, seconds: float) -> None:
        """Try again after *seconds*, in place of a pending attempt."""
        self._stop()
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._try)
        self.is_pending = True

    def close(self) -> None:
        """Cancel a pending attempt, and stop logging."""
        self._stop()
        self._log.close()

    def _try(self) -> None:
        self._stop()
        self._again()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None
            self.is_pending = False


class PauseLog:
    """The two log entries of a pause in accepting, and its count.

    On a busy server at a limit, each connection that ends makes room for the next one, and accepting pauses again at
    once.  That counts as a single pause, which keeps the log short.  It ends after ``QUIET`` seconds without a refusal.
    """

    def __init__(self, loop: Any, address: Any, is_on: Callable[[], bool], counts: dict[str, int]) -> None:
        self._loop = loop
        self._address = address
        self._is_on = is_on
        self._counts = counts
        self._timer: Any = None  # during a pause
        self._noted = False  # whether note was called since the last check

    def note(self, limit: str, reason: object) -> None:
        """Note that accepting pauses for *limit*.  If this begins a pause, count it, and log *reason*."""
        self._noted = True
        if self._timer is None:
            self._timer = self._loop.timer(QUIET, QUIET, ref=False)
            self._timer.start(self._check)
            self._counts[limit] += 1
            logs.listeners.warning("listener on %r paused, and new clients wait: %s", self._address, reason)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _check(self) -> None:
        over = not (self._noted or self._is_on())
        self._noted = False
        if over:
            self.close()
            logs.listeners.warning("listener on %r accepts connections again", self._address)
