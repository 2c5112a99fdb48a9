"""Accepting connections with gevent's ``StreamServer``: no more than there may be, and with patience for the system.

Accepting pauses in two cases, in which the kernel queues who connects:

* there are as many connections as there may be, until one of them is gone;
* the system has nothing left of what a connection takes, such as descriptors or memory.  Then it is tried again, first
  soon and then less often, and whenever one of our own connections is gone.  Open connections go on meanwhile.

Either way the log gets a line when that begins, and one when it is over.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection
from typing import Any

from gevent import get_hub
from gevent.server import StreamServer

from ngi_gevent.core import logs
from ngi_gevent.core.address import with_address
from ngi_gevent.sockets.event_loop import for_timer
from ngi_gevent.sockets.network import Network, Socket

__all__ = ["Acceptor", "default_max_connections"]

#: Seconds after which accepting is tried again where the system refused; they double until it does not.
FIRST_RETRY, LAST_RETRY = 0.01, 0.5

#: Seconds without trouble after which it is over.
QUIET = 1.0

#: What is wrong with the one connection that was to be accepted, and is gone: nothing to do but to accept the next.
OF_THE_CONNECTION = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "EINTR", "ENETDOWN", "ENETUNREACH"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENOPROTOOPT", "ENONET"),
    )
    if hasattr(errno, name)  # not every system has all of them
)


#: Descriptors that are left, where connections are not limited: these at least, for the program itself.
RESERVED = 32


def default_max_connections(network: Network) -> int:
    """Nine tenths of the descriptors that this process may have open: the rest is for what handlers open."""
    descriptors = network.max_descriptors()
    if descriptors is None:
        return sys.maxsize
    return max(1, descriptors - max(RESERVED, descriptors // 10))


class Acceptor(StreamServer):
    """Accepts connections on *sock* and calls ``accepted(sock, peer_address)`` with each, on the hub.

    Whoever gets a socket closes it.  There are never more than *max_connections* in *connections*, which the caller
    fills.  ``gave_up()`` is called if *sock* is no listening socket any more.
    """

    def __init__(
        self,
        network: Network,
        sock: Socket,
        accepted: Callable[[Socket, Any], None],
        connections: Collection[object],
        max_connections: int,
        gave_up: Callable[[], None],
    ) -> None:
        self._network = network
        self._connections = connections
        self._max_connections = max_connections
        self._gave_up = gave_up
        self._retry: Any = None
        self._retry_after = FIRST_RETRY
        loop = get_hub().loop
        address = sock.getsockname()
        self._full = PauseLog(loop, address, self._is_full)
        self._refused = PauseLog(loop, address, lambda: self._retry is not None)
        # A program that waits for connections must not be told that nothing will ever happen while this pauses.
        self._keep_running = loop.async_()
        self._keep_running.start(lambda: None)
        listening: Any = sock  # a Socket is all that gevent needs
        super().__init__(listening, accepted, spawn=None)

    def connection_gone(self) -> None:
        """One of the connections is gone: there may be room for another."""
        if self._retry is not None:
            self._try_again_after(0)
        elif not self.closed:
            self.start_accepting()

    def close(self) -> None:
        self._stop_retry()
        self._full.close()
        self._refused.close()
        self._keep_running.close()
        super().close()

    def close_taking_queued(self) -> list[tuple[Any, Any]]:
        """Close, and return the connections that the kernel had queued, as far as there is room for them.

        Who connects between the last look at the queue and the close is reset, which cannot be told from outside the
        kernel.  So nothing else happens there.
        """
        self.stop_accepting()
        queued: list[tuple[Any, Any]] = []
        while len(self._connections) + len(queued) < self._max_connections and (accepted := self.do_read()):
            queued.append(accepted)
        if not self.closed:
            self.socket.close()
        self.close()
        return queued

    # What gevent's server calls.

    def full(self) -> bool:
        if self.closed:
            return True
        if not self._is_full():
            return False
        self._full.note(f"there are {self._max_connections}, which is max_connections")
        return True

    def do_read(self) -> Any:
        if self.closed:  # a server may have closed its listener while gevent accepts more
            return None
        try:
            accepted = self._network.accept(self.socket)
        except OSError as error:
            if error.errno not in OF_THE_CONNECTION:
                self._system_refused(error)
            return None
        self._retry_after = FIRST_RETRY
        return accepted

    def do_close(self, *_: object) -> None:
        pass

    # Where the system refuses.

    def _is_full(self) -> bool:
        return len(self._connections) >= self._max_connections

    def _system_refused(self, error: OSError) -> None:
        if self.is_fatal_error(error):
            self._gave_up()
            logs.listeners.error("listening is over: %s", with_address(error, self.address))
            return
        self._refused.note(error.strerror)
        self.stop_accepting()
        self._try_again_after(self._retry_after)
        self._retry_after = min(2 * self._retry_after, LAST_RETRY)

    def _try_again_after(self, seconds: float) -> None:
        self._stop_retry()
        self._retry = self.loop.timer(for_timer(self.loop, seconds))
        self._retry.start(self._try_again)

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.close()
            self._retry = None

    def _try_again(self) -> None:
        self._stop_retry()
        self.start_accepting()
        # Even if nobody waits, since that tells whether the system still refuses.
        accepted = None if self.full() else self.do_read()
        if accepted:
            self.do_handle(*accepted)


class PauseLog:
    """A spell in which no connections are accepted, and its two lines in the log.

    Where each connection that ends makes room for the next, trouble comes and goes with every one of them.  That is one
    spell, so that a busy server's log does not fill up: it is over when there has been no trouble for a while.
    """

    def __init__(self, loop: Any, address: Any, is_on: Callable[[], bool]) -> None:
        self._loop = loop
        self._address = address
        self._is_on = is_on
        self._timer: Any = None  # while the spell lasts
        self._lately = False  # whether there was trouble since it was last looked at

    def note(self, reason: object) -> None:
        """There is trouble, again or still."""
        self._lately = True
        if self._timer is None:
            self._timer = self._loop.timer(QUIET, QUIET, ref=False)
            self._timer.start(self._look)
            logs.listeners.warning("%r accepts no more connections for now: %s", self._address, reason)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _look(self) -> None:
        over = not (self._lately or self._is_on())
        self._lately = False
        if over:
            self.close()
            logs.listeners.warning("%r accepts connections again", self._address)
