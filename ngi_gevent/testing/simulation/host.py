"""A host of a simulation: an implementation with its own network, which can crash."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.hub import Hub
from greenlet import GreenletExit

from ngi_gevent.core.checks import as_timeout
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.sockets.hub_registry import log_and_interrupt
from ngi_gevent.sockets.implementation import Implementation
from ngi_gevent.sockets.mailbox import Mailbox, this_thread
from ngi_gevent.testing.simulation.errors import HostCrashed
from ngi_gevent.testing.simulation.greenlets import Greenlets
from ngi_gevent.testing.simulation.links import check_number
from ngi_gevent.testing.simulation.network import HostNetwork

if TYPE_CHECKING:
    from typing_extensions import Self

    from ngi_gevent.core.logs import LogRaised

__all__ = ["Host", "make_dispatcher"]

Result = TypeVar("Result")


class World(Protocol):
    """The methods of a simulation that a host uses."""

    raised: list[BaseException]
    greenlets: Greenlets

    def check_usable(self) -> None:
        """Raise unless the simulation runs, and on this thread."""

    def pause(self, host: Any, seconds: float) -> None:
        """Pause *host*."""

    def crash(self, host: Any, *, silent: bool) -> None:
        """Disconnect *host*, mark all that it has as closed, and end its greenlets."""

    def restart(self, host: Any) -> None:
        """Start *host* again."""


class HostMailbox(Mailbox):
    """The mailbox of a host.  All hosts share the calls, since all run on the same native thread."""

    __slots__ = ()

    owner = "a host that has crashed"

    def __init__(self, hub: Any, calls: deque[Any]) -> None:
        super().__init__(hub)
        self.calls = this_thread.calls = calls

    def leave_to_parent(self) -> None:
        self.is_of_parent = True  # the remaining calls may belong to other hosts


def make_dispatcher(hub: Any, calls: deque[Any]) -> Dispatcher:
    """Return a dispatcher for the host whose turn it is."""
    return Dispatcher(hub, HostMailbox(hub, calls))


class Host(Implementation):
    """An implementation whose network is simulated.  ``Simulation.host`` makes it.

    The test, and greenlets of any host, can call its methods.  Greenlets and connections that begin in such a call
    belong to this host.  It resolves the names of all hosts, and ``'localhost'``.

    While the host is down, methods raise ``HostCrashed``.  After the end of the simulation, they raise
    ``SimulationError``.
    """

    def __init__(self, simulation: World, name: str, start: Callable[[Host], object] | None) -> None:
        super().__init__()
        self._network: HostNetwork
        self._simulation = simulation
        self._name = name
        self._start = start
        self._is_up = False

    def __repr__(self) -> str:
        return f"<Host {self._name!r}>"

    @property
    def name(self) -> str:
        """The name, which is also its host name in addresses."""
        return self._name

    @property
    def addresses(self) -> tuple[str, str]:
        """The IPv4 address and the IPv6 address."""
        return self._network.addresses

    @property
    def is_up(self) -> bool:
        """Whether the host runs: it has not crashed, or has started again."""
        return self._is_up

    # Methods for tests.

    def spawn(self, function: Callable[..., object], *arguments: Any) -> gevent.Greenlet[..., Any]:
        """Spawn *function* in a new greenlet of this host, and return the greenlet.  Never blocks.

        An exception in *function* is added to ``Simulation.raised``.
        """
        with self._turn():
            return gevent.spawn(function, *arguments)

    def pause(self, seconds: float) -> None:
        """Stop everything on this host for so many virtual seconds, as if its process was stopped.  Never blocks.

        Its kernel continues, so data arrives.  A second pause does not shorten the first.

        :raises ValueError: *seconds* is negative.
        """
        seconds = check_number("seconds", seconds)
        with self._turn():
            self._simulation.pause(self, seconds)

    def crash(self, *, silent: bool = False) -> None:
        """End everything on this host at once.  Blocks until the host's greenlets have ended.

        Its connections are reset, as when a process is killed.  Its greenlets get ``GreenletExit``.  Its handlers are
        not called any more.  The files of Unix sockets stay.  Calling this on a host that is down is harmless.

        :param silent: whether the host loses power instead, so that peers receive nothing.
        """
        self._simulation.check_usable()
        if self._is_up:
            self._is_up = False
            self._simulation.crash(self, silent=silent)

    def restart(self) -> None:
        """Start the host again after a crash, and call its start function if it has one.  Never blocks.

        Global variables of modules keep their values, because all hosts are in one process.

        :raises SimulationError: the host is up.
        """
        self._simulation.check_usable()
        self._simulation.restart(self)

    # Methods of an implementation.

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is pending on this host.  See ``IImplementation``.

        :raises HostCrashed: the host had crashed, or crashes during the wait.
        """
        timeout = as_timeout(timeout)
        self._check_up()
        super().wait(timeout)
        self._check_up()

    def close(self) -> None:
        """Close all listeners, end all connections, and cancel all connection attempts of this host.  Never blocks."""
        if self._is_up:
            with self._turn():
                super().close()

    def __exit__(self, *arguments: object) -> None:
        if self._is_up:
            with self._turn():
                super().__exit__(*arguments)

    def _call(self, function: Callable[[], Result]) -> Result:
        with self._turn():
            return function()

    def _on_error(self, registry: Any, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
        if registry.mailbox.is_of_parent:
            return  # the host has crashed, which ends handlers anyway
        if not isinstance(error, (GreenletExit, *Hub.SYSTEM_ERROR)):
            self._simulation.raised.append(error)
        log_and_interrupt(registry, peer, where, error, log)

    # Methods for the simulation.

    def come_up(self, network: Any) -> None:
        """Begin on *network*, without connections."""
        self._network = network
        self._on_hub.clear()
        self._closed = False
        self._is_up = True
        if self._start is not None:
            self.spawn(self._start, self)

    def leave(self) -> None:
        """Mark everything as closed, without calling handlers."""
        for registry in list(self._on_hub.values()):
            registry.leave_to_parent()
            registry.wake()

    def _check_up(self) -> None:
        self._simulation.check_usable()
        if not self._is_up:
            raise HostCrashed(f"host {self._name!r} has crashed; call restart first")

    @contextmanager
    def _turn(self) -> Iterator[Self]:
        """Make the caller act on behalf of this host."""
        self._check_up()
        greenlets = self._simulation.greenlets
        before = greenlets.move(self._name)
        try:
            yield self
        finally:
            greenlets.move(before)
