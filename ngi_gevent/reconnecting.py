"""``reconnecting``: a client that connects again whenever its connection ends, or a connection attempt fails."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent.core import clock
from ngi_gevent.core.checks import as_delay, check_client_handler
from ngi_gevent.core.lifecycle import STOPPED
from ngi_gevent.errors import ImplementationClosed

if TYPE_CHECKING:
    from random import Random

    from ngi_gevent.interfaces import IClientConnectHandler, Reason

__all__ = ["Backoff", "Reconnecting", "reconnecting"]

#: Seconds of the first pause.
FIRST_PAUSE = 0.5

#: Seconds of the longest pause.
LONGEST_PAUSE = 60.0

#: Doublings after which a pause is the longest in any case: a float has no room for many more.
MOST_DOUBLINGS = 64


class Backoff:
    """Pauses that double with each failure, up to a longest one, and are shortened at random, by up to a half.

    An instance is called with the number of failures in succession, from 1, and returns seconds.  Without the random
    part, all clients of a server that restarts would connect at the same moments.

    :param first: seconds of the first pause; 0.5 by default.
    :param longest: seconds of the longest pause; 60 by default.
    :param random: the source of random numbers; the module ``random`` by default.  If each client of a test has its
        own ``random.Random(1)``, the pauses are the same in each run.
    :raises TypeError: *first* or *longest* is not a number, or *random* has no method ``random``.
    :raises ValueError: *first* is 0 or negative, or *longest* is less than *first*.
    """

    def __init__(
        self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE, *, random: Random | None = None
    ) -> None:
        self._first = as_delay(first, "first")
        self._longest = as_delay(longest, "longest")
        if not 0 < self._first <= self._longest:
            raise ValueError(f"first must be over 0 and at most longest; got first={first!r}, longest={longest!r}")
        self._random: Any = random_module if random is None else random
        if isinstance(random, type) or not callable(getattr(self._random, "random", None)):
            raise TypeError(f"random must be an object such as random.Random(), or None; got {random!r:.100}")

    def __call__(self, failures: int) -> float:
        pause = min(self._longest, self._first * 2.0 ** min(failures - 1, MOST_DOUBLINGS))
        shortened: float = pause * (1 - self._random.random() / 2)
        return shortened


def reconnecting(
    connect: Callable[[Any, IClientConnectHandler], object],
    address: Any,
    handler: IClientConnectHandler,
    backoff: Callable[[int], float] | None = None,
) -> Reconnecting:
    """Connect *handler* to *address*, and connect it again whenever its connection ends, until it is stopped.

    Never blocks.  ``handler.connected`` is called with each new connection, and ``handler.failed_connect`` with the
    reason of each attempt that fails.  The handler is the same object each time, so it keeps its attributes.

    * Before each further attempt is a pause, which *backoff* chooses.  It begins when ``failed_connect`` has returned
      or raised, or when the connection is closed, no matter which side ended it.
    * After a connection that lasted at least as long as the pause before it, failures are counted from 1 again.  A
      shorter connection counts as a failure, because a server can accept and close at once.
    * ``wait()`` of the implementation also waits for a pause.
    * When the implementation is closed, the client stops.  A pause or an attempt then ends with
      ``failed_connect('stopped')``.
    * In memory, no time passes.  If something listens on *address*, the next attempt is made at once.  Otherwise, it
      waits until something does.

    :param connect: an implementation's method, such as ``ngi_gevent.connect``.  Pass options with
        ``functools.partial``.
    :param address: as for *connect*.
    :param backoff: called with the number of failures in succession, from 1; returns the seconds of the pause that
        follows.  The default is ``Backoff()``.
    :raises TypeError: *connect* or *backoff* is not callable, *handler* is not a client connect handler, or *address*
        has the wrong type.
    :raises ValueError: *address* cannot be used.
    """
    for name, value in ("connect", connect), ("backoff", backoff):
        if not callable(value) and not (value is None and name == "backoff"):
            raise TypeError(f"{name} must be callable; got {value!r:.100}")
    if isinstance(backoff, type):
        raise TypeError(
            f"backoff must be a function of the number of failures; got {backoff!r:.100}; pass "
            f"{backoff.__name__}(), not the class {backoff.__name__}"
        )
    check_client_handler(handler)
    client = Reconnecting(connect, address, handler, Backoff() if backoff is None else backoff)
    connect(address, client)
    return client


class Reconnecting:
    """A client that connects again, which :func:`reconnecting` returns."""

    #: Seconds before the next attempt begins.  Implementations read it.
    connect_delay = 0.0

    def __init__(
        self,
        connect: Callable[[Any, IClientConnectHandler], object],
        address: Any,
        handler: IClientConnectHandler,
        backoff: Callable[[int], float],
    ) -> None:
        self._connect = connect
        self._address = address
        self._handler = handler
        self._backoff = backoff
        self._stopped = False
        self._failures = 0  # in succession
        self._since = 0.0  # when the connection was made
        self._give_up: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else f"failures: {self._failures}"
        return f"<{type(self).__name__} to {self._address!r}, {state}, handler: {type(self._handler).__name__}>"

    def stop(self) -> None:
        """Stop connecting.  End a pause or an attempt without calling ``failed_connect``.

        Never blocks.  Can be called on any thread, and again.  An open connection stays open, until the handler closes
        it.
        """
        self._stopped = True
        self._give_up()

    # The client connect handler.

    def connecting(self, give_up: Callable[[], object]) -> None:
        """Keep *give_up*, which ends the attempt.  Called when an attempt begins."""
        self._give_up = give_up
        if self._stopped:  # by another thread, a moment ago
            give_up()

    def connected(self, connection: Any) -> object:
        if self._stopped:
            connection.abort()
            return None
        self._since = clock.now()
        connection.when_closed(self._connection_gone)
        return self._handler.connected(connection)

    def failed_connect(self, reason: Reason) -> None:
        if self._stopped:
            return
        if reason == STOPPED:
            self._stopped = True
        try:
            self._handler.failed_connect(reason)
        except Exception:
            self._connect_again()
            raise
        self._connect_again()

    def _connection_gone(self) -> None:
        if clock.now() - self._since >= self.connect_delay:
            self._failures = 0
        self._connect_again()

    def _connect_again(self) -> None:
        if self._stopped:
            return
        self._failures += 1
        try:
            self.connect_delay = as_delay(self._backoff(self._failures), "the pause that backoff returns")
            self._connect(self._address, self)
        except ImplementationClosed:
            self._stopped = True
        except BaseException:
            self._stopped = True
            raise
