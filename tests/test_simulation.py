"""A simulation without its network: virtual time, the hosts of greenlets, and the errors that end it."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.lock import BoundedSemaphore, RLock
from gevent.pool import Pool
from gevent.queue import Empty, Queue
from greenlet import greenlet

from ngi_gevent import testing
from ngi_gevent.core import clock
from ngi_gevent.testing.simulation import HostCrashed, NotSimulated, Simulation, SimulationError, Spins, Stuck


@pytest.fixture
def simulation():
    with Simulation() as simulation:
        yield simulation


# Time.


def test_an_hour_takes_no_time(simulation):
    gevent.sleep(3600)
    assert simulation.now() == pytest.approx(3600, abs=0.001)
    assert clock.now() == simulation.now()


def test_the_clock_of_the_package_is_the_real_one_afterwards():
    before = clock.now()
    with Simulation():
        gevent.sleep(1_000_000)
    assert clock.now() < before + 100


def test_greenlets_wake_in_the_order_of_their_times(simulation):
    woken = []

    def sleep(seconds: float) -> None:
        gevent.sleep(seconds)
        woken.append((seconds, round(simulation.now(), 3)))

    gevent.joinall([gevent.spawn(sleep, seconds) for seconds in (3, 1, 2, 0.5)])
    assert woken == [(0.5, 0.5), (1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(("update", "seconds"), [(True, 11), (False, 10)])
def test_a_timer_counts_from_the_loops_last_reading_of_the_clock(simulation, update, seconds):
    """On libev too, a timer that does not update the time is early if a callback has computed for long."""
    fired, loop = [], gevent.get_hub().loop
    timer: Any = loop.timer(1)

    def compute() -> None:
        simulation.compute(9)
        timer.start(lambda: fired.append(simulation.now()), update=update)

    loop.timer(1).start(compute)
    gevent.sleep(20)
    assert fired == [pytest.approx(seconds, abs=0.001)]


def test_data_arrives_during_a_computation_and_before_the_timers_after_it():
    for seed in range(20):
        with Simulation(seed) as simulation:
            happened: list[str] = []
            gevent.get_hub().loop.timer(1).start(happened.append, "timer")
            simulation._loop.after(2, happened.append, "data")
            gevent.sleep(0)
            simulation.compute(3)
            gevent.sleep(1)
        assert happened == ["data", "timer"], seed


def test_queues_locks_pools_and_results_of_gevent_work(simulation):
    queue: Queue[int] = Queue(maxsize=1)
    result: AsyncResult[str] = AsyncResult()
    lock, semaphore = RLock(), BoundedSemaphore(2)

    def produce() -> None:
        for number in range(3):
            with lock, semaphore:
                queue.put(number)
            gevent.sleep(1)
        result.set("done")

    pool = Pool(2)
    pool.spawn(produce)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Empty):
        queue.get(timeout=0.5)
    assert result.get() == "done"
    pool.join()
    assert simulation.now() == pytest.approx(3, abs=0.001)


def test_a_timeout_expires(simulation):
    with gevent.Timeout(5, False):
        Event().wait()
    assert simulation.now() == pytest.approx(5, abs=0.001)


def test_greenlets_that_only_yield_do_not_stop_the_clock(simulation):
    with gevent.Timeout(0.01, False):
        while True:
            gevent.sleep(0)
    assert simulation.now() == pytest.approx(0.01, abs=0.001)


def test_nothing_else_runs_while_a_computation_takes_time(simulation):
    ticks = []
    gevent.spawn(lambda: [(gevent.sleep(1), ticks.append(simulation.now())) for _ in range(3)])
    gevent.sleep(0)
    simulation.compute(10)
    assert ticks == []
    gevent.sleep(2.5)
    assert len(ticks) == 3
    assert ticks[0] == pytest.approx(10, abs=0.001)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_impossible_seconds_are_refused(simulation, seconds):
    with pytest.raises(ValueError, match=f"seconds must be >= 0; got {seconds}"):
        simulation.compute(seconds)
    with pytest.raises(TypeError, match="seconds must be a number; got '1'"):
        simulation.host("a").pause("1")


# The order.


def order_of_ten(seed: int) -> tuple[list[int], str]:
    woken: list[int] = []
    with Simulation(seed) as simulation:
        for number in range(10):
            gevent.spawn(lambda number=number: (gevent.sleep(1), woken.append(number)))
        gevent.sleep(2)
        return woken, simulation.digest


def test_the_seed_draws_the_order_of_simultaneous_events():
    assert order_of_ten(0)[0] == list(range(10))
    orders = [order_of_ten(seed) for seed in range(1, 6)]
    assert len({str(order) for order, _ in orders}) == 5
    assert [order_of_ten(seed) for seed in range(1, 6)] == orders


def test_callbacks_keep_their_order_without_is_any_order():
    def orders(**options: Any) -> set[str]:
        found = set()
        for seed in range(1, 6):
            ran: list[int] = []
            with Simulation(seed, **options):
                for number in range(5):
                    gevent.spawn(ran.append, number)
                gevent.sleep(1)
            found.add(str(ran))
        return found

    assert orders() == {str(list(range(5)))}
    assert len(orders(is_any_order=True)) > 1


@pytest.mark.parametrize("virtual", [False, True], ids=["libev", "simulation"])
def test_a_callback_comes_last_before_the_loop_waits(virtual):
    """Otherwise a prepare watcher would run once more in the simulation, and hide that a wake-up is missing."""
    with Simulation() if virtual else contextlib.nullcontext():
        seen, loop = [], gevent.get_hub().loop
        gevent.sleep(0.001)
        watcher: Any = loop.prepare(ref=False)
        watcher.start(lambda: seen.append("watcher"))
        try:
            loop.run_callback(seen.append, "callback")
            gevent.sleep(0.01)
            assert seen == ["watcher", "callback"]
        finally:
            watcher.stop()
            watcher.close()


def test_a_timer_that_another_timer_has_closed_does_not_fire():
    for seed in range(50):
        with Simulation(seed) as simulation:
            loop: Any = gevent.get_hub().loop
            fired = []
            timers = [loop.timer(1), loop.timer(1)]
            for this, other in (timers, timers[::-1]):
                this.start(lambda this=this, other=other, fired=fired: (fired.append(this), other.close()))
            gevent.sleep(2)
            assert len(fired) == 1, simulation.seed


def test_a_replay_makes_only_the_draws_that_it_lists():
    with Simulation(3) as simulation:
        for _ in range(10):
            gevent.spawn(gevent.sleep, 1)
        gevent.sleep(2)
        deviations = simulation.deviations
    assert len(deviations) > 2
    with Simulation(replay=f"3:{deviations[1]}") as simulation:
        for _ in range(10):
            gevent.spawn(gevent.sleep, 1)
        gevent.sleep(2)
        assert simulation.deviations == deviations[1:2]
        assert [event.kind for event in simulation.trace.events] == ["choose"]


@pytest.mark.parametrize("replay", ["", "x", "1:", "1:x3", "1:s", "1:s1;s2", "0x1", "1:n0", "1:n-1"])
def test_a_replay_must_have_its_syntax(replay):
    if replay == "1:":
        assert Simulation(replay=replay).seed == 1
        return
    with pytest.raises(ValueError, match="a replay must be a seed"):
        Simulation(replay=replay)


@pytest.mark.parametrize("replay", [5, b"5"])
def test_a_replay_must_be_a_str(replay):
    with pytest.raises(TypeError, match="a replay must be a str, such as '7' or '7:s12,n45'; got"):
        Simulation(replay=replay)


@pytest.mark.parametrize("max_turns", [0, -1, "1", None, True])
def test_max_turns_must_be_an_int(max_turns):
    with pytest.raises((TypeError, ValueError), match="max_turns must be an int >= 1; got"):
        Simulation(max_turns=max_turns)


def test_a_start_function_must_be_callable(simulation):
    with pytest.raises(TypeError, match="start must be a callable that takes the host; got 5"):
        simulation.host("host", 5)
    assert simulation.host("host").is_up


@pytest.mark.parametrize("seed", ["1", 1.0, None, True])
def test_a_seed_must_be_an_int(seed):
    with pytest.raises(TypeError, match="seed must be an int; got"):
        Simulation(seed)


def test_random_numbers_of_the_program_come_from_the_seed():
    assert Simulation(5).random.random() == Simulation(5).random.random() != Simulation(6).random.random()


# Errors that end a simulation.


def test_an_endless_wait_is_an_error_that_names_each_waiting_greenlet(simulation):
    never = Event()
    simulation.host("server").spawn(lambda: never.wait())
    with pytest.raises(
        Stuck, match=r"nothing is left to happen, and the test still waits, at 0\.\d+ seconds"
    ) as raised:
        never.wait()
    assert "\n  (test): greenlet 0, in " in str(raised.value)
    assert "\n  server: greenlet 1, in <lambda>, at " in str(raised.value)
    assert f"{__file__}:" in str(raised.value)
    gevent.sleep(1)  # the simulation can continue


def test_a_periodic_timer_does_not_hide_an_endless_wait(simulation):
    ticking = gevent.get_hub().loop.timer(1, 1)
    ticking.start(lambda: None)
    with pytest.raises(Stuck):
        Event().wait()
    gevent.sleep(5000)  # a timer of a greenlet is left, so this wait is not endless
    ticking.close()


def test_greenlets_that_spin_without_time_are_an_error(simulation):
    def spin() -> None:
        while True:
            gevent.sleep(0)

    spinning = gevent.spawn(spin)
    with pytest.raises(Spins, match="no time has passed for 100000 turns of the loop, at "):
        Event().wait()
    spinning.kill()


def test_a_simulation_without_an_end_is_an_error():
    with Simulation(max_turns=1000) as simulation:

        def poll() -> None:
            while True:
                gevent.sleep(1)

        polling = gevent.spawn(poll)
        with pytest.raises(Spins, match="there was no end after 1001 turns of the loop, more than max_turns"):
            Event().wait()
        polling.kill()
        assert simulation.now() > 100


# Misuse.


def test_a_simulation_inside_another_is_refused(simulation):
    with pytest.raises(SimulationError, match="already runs a simulation"), Simulation():
        pass
    gevent.sleep(1)


def test_a_simulation_can_run_once():
    once = Simulation()
    with pytest.raises(SimulationError, match="has not begun"):
        once.host("a")
    with once:
        host = once.host("a")
    with pytest.raises(SimulationError, match="a simulation can run once"), once:
        pass
    for late in (lambda: once.host("b"), host.wait, lambda: host.connect(("a", 1), None), host.crash):
        with pytest.raises(SimulationError, match="the simulation is over"):
            late()


def test_use_on_another_thread_is_refused():
    simulation = Simulation()
    begun = threading.Event()
    errors: list[BaseException] = []

    def use() -> None:
        begun.wait()
        for call in (lambda: simulation.host("other"), lambda: host.listener(None, print)):
            try:
                call()
            except SimulationError as error:
                errors.append(error)

    started: Any = threading.Thread(target=use)
    started.start()
    with simulation:
        host = simulation.host("server")
        begun.set()
        started.join()
    assert [str(error) for error in errors] == [
        "a simulation must be used on the thread that began it; this is another thread"
    ] * 2


def test_a_simulation_in_a_callback_of_the_hub_is_refused():
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            Simulation().__enter__()
        except SimulationError as error:
            errors.append(error)

    gevent.get_hub().loop.run_callback(enter)
    gevent.sleep(0.001)
    assert "in a callback of gevent's hub" in str(errors[0])


def test_an_event_from_outside_is_refused_and_works_again_afterwards():
    outside, woken = Event(), Event()
    gevent.spawn(lambda: (outside.wait(), woken.set()))
    gevent.sleep(0)
    with Simulation():
        for _ in range(2):
            with pytest.raises(NotSimulated, match="from outside the simulation"):
                outside.wait()
        gevent.sleep(1)
    outside.set()
    assert woken.wait(20)


def test_all_links_can_be_changed_at_once(simulation):
    for name in "ab":
        simulation.host(name)
    simulation.link("a", "b").set(loss=0.5)
    simulation.set_links(latency=0.25)
    simulation.host("c")
    links = [simulation.link("a", other) for other in "bc"]
    assert [(link.latency, link.loss) for link in links] == [(0.25, 0.5), (0.25, 0)]
    with pytest.raises(ValueError, match="loss must be from 0 to 1; got 2"):
        simulation.set_links(loss=2)


# The end.


def test_the_end_unwinds_all_greenlets():
    unwound: list[str] = []

    def wait(name: str) -> None:
        try:
            gevent.sleep(1000)
        finally:
            gevent.sleep(0)
            unwound.append(name)

    before = sum(isinstance(thing, greenlet) for thing in gc.get_objects())
    with Simulation() as simulation:
        host = simulation.host("server")
        for name in "abc":
            host.spawn(wait, name)
        gevent.spawn(wait, "of the test")
        simulation.host("other").spawn(wait, "d")
        gevent.sleep(1)
        gevent.spawn(wait, "late")
    assert unwound == ["a", "b", "c", "d", "of the test", "late"]
    gc.collect()
    assert sum(isinstance(thing, greenlet) for thing in gc.get_objects()) <= before


def test_an_exception_of_a_greenlet_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), Simulation():
        gevent.spawn(lambda: 1 / 0)
        gevent.sleep(1)


def test_an_exception_that_the_test_has_removed_is_not_raised():
    with Simulation() as simulation:
        gevent.spawn(lambda: 1 / 0)
        gevent.sleep(1)
        assert isinstance(simulation.raised.pop(), ZeroDivisionError)


def test_a_timeout_that_leaves_a_handler_is_raised_at_the_end():
    class Handler(testing.Recorder):
        def handle_input(self, connection, data):
            with gevent.Timeout(1):
                gevent.sleep(5)

    with pytest.raises(gevent.Timeout), Simulation() as simulation:
        server, client = simulation.host("server"), simulation.host("client")
        server.listener(("server", 8000), Handler().connected)
        client.connect(("server", 8000), recorder := testing.Recorder())
        recorder.wait_connected().write(b"x")
        gevent.sleep(5)


def test_an_exception_after_the_crash_of_the_host_is_not_raised(simulation):
    def program(host):
        try:
            gevent.sleep(60)
        finally:
            host.connect(("server", 8000), testing.Recorder())

    host = simulation.host("host", program)
    gevent.sleep(1)
    host.crash()
    gevent.sleep(1)
    assert simulation.raised == []


@pytest.mark.parametrize("crashes", [False, True])
def test_a_greenlet_that_does_not_end_is_an_error(crashes):
    def program(host):
        while True:
            with contextlib.suppress(BaseException):
                gevent.sleep(60)

    with pytest.raises(SimulationError) as raised, Simulation() as simulation:
        host = simulation.host("host", program)
        gevent.sleep(1)
        if crashes:
            host.crash()
            host.restart()
    assert "greenlets continued after 10 times GreenletExit; let it pass:\n  host: greenlet 1, in " in str(raised.value)


def test_the_error_of_the_test_itself_is_raised_first():
    with pytest.raises(KeyError), Simulation():
        gevent.spawn(lambda: 1 / 0)
        gevent.sleep(1)
        raise KeyError


def test_the_garbage_collector_is_off_during_a_simulation():
    assert gc.isenabled()
    with Simulation():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_simulation_in_a_greenlet_does_not_affect_others():
    def run() -> float:
        with Simulation() as simulation:
            gevent.sleep(1000)
            return simulation.now()

    runs = [gevent.spawn(run) for _ in range(3)]
    assert all(999 < one.get() < 1001 for one in runs)


# Hosts.


def test_a_greenlet_belongs_to_the_host_of_the_greenlet_that_spawned_it(simulation):
    host = simulation.host("server")
    host.spawn(lambda: gevent.spawn(lambda: gevent.spawn(gevent.sleep, 10)).join())
    gevent.sleep(1)
    assert [line.partition(":")[0] for line in simulation.describe_waiting()] == ["(test)", "server"]


def test_a_crash_ends_only_the_greenlets_of_its_host(simulation):
    ended: list[str] = []

    def run(name: str) -> None:
        try:
            gevent.sleep(1000)
        finally:
            ended.append(name)

    one, other = simulation.host("one"), simulation.host("other")
    one.spawn(run, "one")
    other.spawn(run, "other")
    gevent.spawn(run, "test")
    gevent.sleep(1)
    one.crash()
    assert ended == ["one"]
    assert not one.is_up
    for call in (lambda: one.spawn(run), one.wait, lambda: one.listener(None, print), lambda: one.pause(1)):
        with pytest.raises(HostCrashed, match="host 'one' has crashed; call restart first"):
            call()
    one.crash()
    one.close()


def test_a_host_starts_again_with_its_start_function(simulation):
    started: list[tuple[Any, float]] = []
    host = simulation.host("server", lambda host: started.append((host, round(simulation.now()))))
    gevent.sleep(1)
    with pytest.raises(SimulationError, match="host 'server' is up"):
        host.restart()
    host.crash()
    gevent.sleep(9)
    host.restart()
    gevent.sleep(1)
    assert started == [(host, 0), (host, 10)]


@pytest.mark.parametrize("by", ["a greenlet of the host", "a greenlet of another host", "a callback of the hub"])
def test_greenlets_and_callbacks_of_the_hub_can_crash_a_host(simulation, by):
    host, other = simulation.host("server"), simulation.host("other")
    after: list[str] = []
    host.spawn(gevent.sleep, 1000)

    def crash() -> None:
        host.crash()
        after.append("after")

    if by == "a callback of the hub":
        simulation.link  # noqa: B018
        gevent.get_hub().loop.run_callback(crash)
    else:
        (host if "the host" in by else other).spawn(crash)
    gevent.sleep(1)
    assert not host.is_up
    assert [line.partition(":")[0] for line in simulation.describe_waiting()] == ["(test)"]
    assert after == ([] if "the host" in by else ["after"])


def test_a_paused_host_does_nothing_until_the_pause_ends(simulation):
    ticks: dict[str, list[float]] = {"paused": [], "running": []}

    def tick(name: str) -> None:
        while True:
            gevent.sleep(1)
            ticks[name].append(round(simulation.now(), 2))

    hosts = {name: simulation.host(name) for name in ticks}
    for name, host in hosts.items():
        host.spawn(tick, name)
    gevent.sleep(2.5)
    hosts["paused"].pause(10)
    gevent.sleep(11.2)
    assert ticks["paused"] == [1, 2, 12.5, 13.5]
    assert ticks["running"] == list(range(1, 14))


def test_a_second_pause_does_not_shorten_the_first(simulation):
    host, ticks = simulation.host("server"), []
    host.spawn(lambda: (gevent.sleep(1), ticks.append(round(simulation.now()))))
    gevent.sleep(0)
    host.pause(50)
    host.pause(5)
    gevent.sleep(100)
    assert ticks == [50]


def test_a_wait_for_a_host_raises_when_the_host_crashes(simulation):
    server, client = simulation.host("server"), simulation.host("client")
    server.listener(("server", 80), print)
    errors = []

    def wait() -> None:
        try:
            server.wait()
        except HostCrashed as error:
            errors.append(error)

    client.spawn(wait)
    gevent.spawn_later(5, server.crash)
    with pytest.raises(HostCrashed, match="host 'server' has crashed"):
        server.wait()
    gevent.sleep(1)
    assert len(errors) == 1


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupt])
def test_an_exception_that_ends_the_test_is_raised_in_its_wait(simulation, error):
    def interrupt() -> None:
        raise error

    gevent.get_hub().loop.run_callback(interrupt)
    with pytest.raises(error):
        gevent.sleep(10)
    gevent.sleep(1)  # the hub continues, so the simulation can end gracefully


def test_ctrl_c_between_two_callbacks_is_raised_in_the_wait_of_the_test(simulation, monkeypatch):
    loop: Any = gevent.get_hub().loop
    jump, jumps = loop.agenda.jump, []

    class Agenda(type(loop.agenda)):  # type: ignore[misc]
        __slots__ = ()

        def jump(self) -> bool:
            jumps.append(1)
            if len(jumps) == 1:
                raise KeyboardInterrupt
            return jump()

    loop.agenda.__class__ = Agenda
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(10)
    gevent.sleep(1)


def test_a_host_that_waits_for_an_event_of_another_host_wakes_as_itself(simulation):
    event = Event()
    seen: list[str] = []
    loop: Any = gevent.get_hub().loop

    def wait() -> None:
        event.wait()
        seen.append(loop.host)

    for name in "abc":
        simulation.host(name).spawn(wait)
    gevent.sleep(1)
    simulation.host("d").spawn(lambda: (event.set(), seen.append(loop.host)))
    gevent.sleep(1)
    assert seen == ["d", "a", "b", "c"]


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        gevent.sleep(0.001)


def test_a_host_must_have_a_unique_name(simulation):
    simulation.host("server")
    with pytest.raises(ValueError, match="server"):
        simulation.host("server")


def test_patches_time_makes_time_and_random_follow_the_simulation():
    drawn = []
    for _ in range(2):
        with Simulation(7, patches_time=True):
            before = time.monotonic(), time.time()
            gevent.sleep(1000)
            assert time.monotonic() - before[0] == pytest.approx(1000)
            assert time.time() - before[1] == pytest.approx(1000)
            drawn.append(random.random())
    assert drawn[0] == drawn[1]
    with Simulation():
        before_real = time.monotonic()
        gevent.sleep(1000)
        assert time.monotonic() - before_real < 500


def test_a_call_that_leaves_the_simulation_is_refused(simulation):
    with pytest.raises(NotSimulated, match=r"socket\.socket was called in a simulation; use connect and"):
        socket.socket()


def test_a_finished_simulation_is_freed():
    simulation = Simulation()
    with simulation:
        server, client = simulation.host("server"), simulation.host("client")
        server.listener(("server", 80), testing.Recorder)
        recorder = testing.Recorder()
        client.connect(("server", 80), recorder)
        recorder.wait_connected()
        server.crash()
        recorder.wait_closed()
    freed = weakref.ref(simulation)
    del simulation, server, client, recorder
    gc.collect()
    assert freed() is None
