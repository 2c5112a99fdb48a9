"""A network of hosts in memory, in virtual time, whose schedule is drawn from a seed."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

from gevent.event import Event as Happening
from gevent.hub import set_hub  # type: ignore[attr-defined]
from greenlet import GreenletExit, getcurrent

from ngi_gevent.core import clock, forks
from ngi_gevent.core.threads import get_hub_if_exists, get_ident
from ngi_gevent.sockets.mailbox import this_thread
from ngi_gevent.testing.simulation.errors import NotSimulated, SimulationError
from ngi_gevent.testing.simulation.fence import Fence
from ngi_gevent.testing.simulation.greenlets import Greenlets
from ngi_gevent.testing.simulation.host import Host, make_dispatcher
from ngi_gevent.testing.simulation.hub import SimulatedHub
from ngi_gevent.testing.simulation.internet import Internet
from ngi_gevent.testing.simulation.limits import Limits
from ngi_gevent.testing.simulation.links import check_number
from ngi_gevent.testing.simulation.loop import VirtualLoop
from ngi_gevent.testing.simulation.program import patched_time
from ngi_gevent.testing.simulation.schedule import Draws, parse_replay

if TYPE_CHECKING:
    from typing_extensions import Self

    from ngi_gevent.testing.simulation.links import Link
    from ngi_gevent.testing.simulation.trace import Trace

__all__ = ["Simulation"]

#: How often greenlets are killed at the end, since a ``finally`` clause may wait again.
KILLS = 10


class Simulation:
    """Hosts, and the network between them.  Use it once, in a ``with`` statement.  Waiting inside takes no real time.

    Everything runs on one native thread, and happens in the same order each time for the same *seed*.  At the end of
    the ``with`` statement, hosts lose power, and greenlets get ``GreenletExit``.  Then an exception of a handler or
    greenlet is raised, unless the test has removed it from ``raised``.  If a greenlet continues after
    ``GreenletExit``, ``SimulationError`` is raised.  Later calls raise ``SimulationError``.

    :param seed: decides the order of events at the same time, and how long data takes.  Seed 0 draws nothing.
    :param replay: a seed, or ``'SEED:s12,n45'`` with the numbers of the only draws to make, in place of *seed*.
    :param is_any_order: whether callbacks of gevent's hub also run in any order.  gevent keeps the order in which they
        were made, and programs rely on it.
    :param max_turns: turns of the loop after which the test's wait raises ``Spins``.
    :param keeps_all_events: whether ``trace.events`` keeps all events, instead of the last 50.
    :param patches_time: whether the functions of the modules ``time`` and ``random`` follow the simulation, for
        programs that call them.  Functions that the program imported by name before do not follow it.
    :ivar raised: exceptions of handlers and greenlets.
    :ivar random: random numbers for the program, the same for the same seed.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        replay: str | None = None,
        is_any_order: bool = False,
        max_turns: int = 5_000_000,
        keeps_all_events: bool = False,
        patches_time: bool = False,
    ) -> None:
        kept = None
        if replay is not None:
            seed, kept = parse_replay(replay)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"seed must be an int; got {seed!r}")
        self.seed = seed
        self.raised: list[BaseException] = []
        self.random = Random(f"p{seed}")
        self._shows_choices = kept is not None
        kept = kept or {"s": None, "n": None}  # type: ignore[dict-item]
        self._draws = [Draws(seed, name, self._note_draw, kept[name]) for name in ("s", "n")]
        self._loop = VirtualLoop(self._draws[0], Limits(max_turns), is_any_order=is_any_order)
        if keeps_all_events:
            self.trace.keep_all()
        self._internet = Internet(self._loop, self._draws[1], self.trace)
        self._hosts: dict[str, Host] = {}
        self._patches_time = patches_time
        self._thread: int | None = None
        self._is_over = False
        self._is_running = False
        self._undead: list[str] = []  # greenlets that do not end when killed
        self._calls: deque[Any] = deque()  # pending callbacks of all hosts

    # State.

    @property
    def trace(self) -> Trace:
        """The events of the simulation."""
        return self._loop.trace

    @property
    def digest(self) -> str:
        """A text that is the same for two runs if the same has happened in both."""
        return self.trace.digest

    @property
    def deviations(self) -> list[str]:
        """The draws so far that were not plain, such as ``'s12'``.  The schedule's come first, then the network's."""
        return [f"{draws.name}{number}" for draws in self._draws for number in draws.deviations]

    def now(self) -> float:
        """Return the virtual seconds since the start."""
        return self._loop.now()

    def describe_waiting(self) -> list[str]:
        """Return where each greenlet waits, a line for each."""
        return self.greenlets.describe()

    # Hosts and links.

    def host(self, name: str, start: Callable[[Host], object] | None = None, *, max_descriptors: int = 1024) -> Host:
        """Add a host, and start it.  Never blocks.

        :param name: its name in addresses, such as ``'server'``.
        :param start: called with the host in a new greenlet of the host, now and after each restart.
        :param max_descriptors: sockets that it can have open.
        :raises TypeError: *start* is not callable.
        :raises ValueError: there is a host with this name, or addresses cannot have this name.
        """
        self.check_usable()
        if start is not None and not callable(start):
            raise TypeError(f"start must be a callable that takes the host; got {start!r}")
        network = self._internet.add_host(name, max_descriptors=max_descriptors)
        host = self._hosts[name] = Host(self, name, start)
        self._come_up(host, network)
        return host

    def link(self, one: Host | str, other: Host | str) -> Link:
        """Return the link between two hosts, for example to change its latency.

        :raises ValueError: one of them is not a host of this simulation, or both are the same.
        """
        self.check_usable()
        return self._internet.link(_name_of(one), _name_of(other))

    def set_links(
        self,
        *,
        latency: float | None = None,
        jitter: float | None = None,
        bandwidth: float | None = None,
        loss: float | None = None,
        duplicates: float | None = None,
        reorder: float | None = None,
    ) -> None:
        """Change all links between two hosts, including links of later hosts.  See ``Link.set``.  Never blocks."""
        self.check_usable()
        values = {"latency": latency, "jitter": jitter, "bandwidth": bandwidth}
        self._internet.set_links(**values, loss=loss, duplicates=duplicates, reorder=reorder)

    def partition(self, one: Host | str, other: Host | str, *, both: bool = True) -> None:
        """Stop everything from *one* host to the *other*, and back if *both*.  Never blocks.

        Streams are held until ``heal``.  Datagrams are lost.  Hosts are not notified.
        """
        self.check_usable()
        self._internet.partition(_name_of(one), _name_of(other), both=both)

    def heal(self, one: Host | str, other: Host | str, *, both: bool = True) -> None:
        """End a partition: held data arrives soon.  Never blocks."""
        self.check_usable()
        self._internet.heal(_name_of(one), _name_of(other), both=both)

    def compute(self, seconds: float) -> None:
        """Advance virtual time without running anything else, as a handler that computes does.

        :raises ValueError: *seconds* is negative.
        """
        self.check_usable()
        self._loop.compute(check_number("seconds", seconds))

    # The with statement.

    def __enter__(self) -> Self:
        outer = get_hub_if_exists()
        if isinstance(outer, SimulatedHub):
            raise SimulationError("this thread already runs a simulation; end that one first")
        if self._thread is not None:
            raise SimulationError("a simulation can run once; create another")
        if getcurrent() is outer:
            raise SimulationError("a simulation cannot run in a callback of gevent's hub; enter it in a greenlet")
        self._thread = get_ident()
        with ExitStack() as ending:
            ending.callback(_restore, outer, (this_thread.dispatcher, this_thread.calls))
            self._begin(outer, ending)
            self._ending = ending.pop_all()
        self._is_running = True
        return self

    def _begin(self, outer: Any, ending: ExitStack) -> None:
        if gc.isenabled():
            # The existing garbage depends on the rest of the process, so the loop itself collects garbage, after a
            # number of turns.
            gc.disable()
            ending.callback(gc.enable)
        ending.callback(clock.use, clock.use(self._loop.now))
        self._left: list[object] = []  # the greenlets of crashed hosts
        ending.callback(forks.keep_in, forks.keep_in(self._left))
        hub = self._hub = SimulatedHub(self._loop, self._note_raised)
        ending.callback(hub.destroy, destroy_loop=True)
        set_hub(hub)
        self.greenlets = Greenlets(self._loop, hub)
        self._loop.describe_waiting = self.describe_waiting
        if outer is not None:
            self._guard(outer, ending)
        self.greenlets.start()
        ending.callback(self.greenlets.stop)
        self._loop.dispatchers[""] = this_thread.dispatcher = make_dispatcher(hub, self._calls)
        ending.enter_context(Fence())
        if self._patches_time:
            ending.enter_context(patched_time(self._loop.now, self.random))

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with self._ending:
            raised = list(self.raised)
            self._end()
        if error is None and raised:
            raise raised[0]
        if error is None and self._undead:
            shown = "\n  ".join(self._undead)
            raise SimulationError(f"greenlets continued after {KILLS} times GreenletExit; let it pass:\n  {shown}")

    def _end(self) -> None:
        """Crash all hosts, and end all greenlets."""
        try:
            for host in self._hosts.values():
                if host.is_up:
                    host.crash(silent=True)
            self._end_greenlets()
        finally:
            self._is_running = False
            self._is_over = True

    # Methods for hosts.

    def check_usable(self) -> None:
        """Raise unless the simulation runs, and on this thread."""
        if self._thread is None:
            raise SimulationError("the simulation has not begun; use its hosts in a `with simulation:` block")
        if self._thread != get_ident():
            raise SimulationError("a simulation must be used on the thread that began it; this is another thread")
        if not self._is_running:
            raise SimulationError("the simulation is over; create another")

    def pause(self, host: Host, seconds: float) -> None:
        """Pause *host*."""
        self.trace.note("pause", host.name, f"for {seconds:g} seconds")
        self._loop.hold(host.name, seconds)

    def crash(self, host: Host, *, silent: bool) -> None:
        """Disconnect *host*, mark all that it has as closed, and end its greenlets."""
        self.trace.note("crash", host.name, "without power" if silent else "its process was killed")
        self._internet.crash(host.name, silent=silent)
        dispatcher = self._loop.dispatchers[host.name]
        host.leave()
        dispatcher.leave_to_parent()
        self._loop.drop(host.name)
        self._end_greenlets(host.name)
        self._loop.drop(host.name)

    def restart(self, host: Host) -> None:
        """Start *host* again."""
        if host.is_up:
            raise SimulationError(f"host {host.name!r} is up; crash it before restart")
        self._come_up(host, self._internet.restart(host.name))

    def _come_up(self, host: Host, network: Any) -> None:
        self.trace.note("start", host.name, "")
        before = self.greenlets.move(host.name)
        try:
            self._loop.dispatchers[host.name] = this_thread.dispatcher = make_dispatcher(self._hub, self._calls)
            host.come_up(network)
        finally:
            self.greenlets.move(before)

    def _end_greenlets(self, host: str | None = None) -> None:
        """End the greenlets of *host*, or of all hosts."""
        for _ in range(KILLS):
            left = self.greenlets.of_host(host)
            if not left:
                return
            self._kill(left)
        self._undead = self._undead or self.greenlets.describe(host)

    def _kill(self, greenlets: list[Any]) -> None:
        """Throw ``GreenletExit`` into *greenlets*, on the hub, one after another."""
        current = getcurrent()
        done = Happening()

        def kill() -> None:
            for greenlet in greenlets:
                if not greenlet.dead and greenlet is not current:
                    greenlet.throw(GreenletExit)
            done.set()

        if current is self._hub:
            kill()
        else:
            self._loop.call_soon("", kill)
            done.wait()
            if current in greenlets:
                raise GreenletExit

    def _note_raised(self, error: BaseException) -> None:
        host = self._hosts.get(self._loop.host)
        if not self._is_over and (host is None or host.is_up):  # a killed process does not report its exceptions
            self.raised.append(error)

    def _note_draw(self, stream: str, number: int, drawn: object) -> None:
        if self._shows_choices:
            shown = f"{drawn:.6f}" if isinstance(drawn, float) else drawn
            self.trace.note("choose", self._loop.host, f"{stream}{number}: {shown}")
        else:
            self.trace.mark((stream, number, drawn))

    def _guard(self, outer: Any, ending: ExitStack) -> None:
        """Throw an error into each greenlet that waits on the hub outside the simulation."""
        visitors: list[Any] = []
        self.greenlets.left = lambda origin, target: visitors.append(origin)

        def refuse() -> None:
            guard[0] = outer.loop.run_callback(refuse)
            while visitors:
                visitors.pop().throw(
                    NotSimulated(
                        "a wait used an object of gevent from outside the simulation; create events and locks in it"
                    )
                )

        guard = [outer.loop.run_callback(refuse)]
        ending.callback(lambda: guard[0].stop())


def _restore(hub: Any, before: tuple[Any, Any]) -> None:
    set_hub(hub)
    this_thread.dispatcher, this_thread.calls = before


def _name_of(host: Host | str) -> str:
    return host.name if isinstance(host, Host) else host
