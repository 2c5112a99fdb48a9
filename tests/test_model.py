"""Connections against a model: random lives of connections, in memory and on TCP, and the callbacks of their handlers.

The model is a connection in a few lines, written after the state table and the rules of the contract.  It has no
buffers, sockets or turns.  Hypothesis draws the steps.  Each step is applied to the model, in memory, and on TCP.
After each step, the handlers of all three must have received the same callbacks.

Handlers receive their commands as input, one byte for each command, so the sizes of the pieces do not matter:

========  ==================================================================================================
``0``     nothing
``E``     write a ``1``
``S``     set another handler, which gets the rest
``I``     ``writelines`` of three pieces
``W``     ``writelines`` of three pieces, after a ``write`` by another thread
``F N``   ``writelines`` of an iterator that raises, or yields a str, after two pieces
``Y Z``   ``writelines`` of an iterator that closes, or aborts, the connection
``C D``   close; close twice, on another greenlet
``T``     close, on another thread
``A B``   abort; abort twice, on another greenlet
``U``     abort on another thread, and again on this one
``K J``   abort and close; close and abort
``X``     raise
``c ...`` any of these in lower case: write the command to the peer, which then carries it out
========  ==================================================================================================

The other callbacks carry out commands that were prepared for them.  The callback given to ``when_closed`` always closes
and aborts once more.

If both sides act at once, more than one outcome is right.  For example, the rest of an iterator may arrive or not if
the peer ends the connection, and so may output that is in transit during an abort.  For this reason, commands are drawn
such that only one event at a time has consequences; see ``commands``.

``pytest -m "" --hypothesis-profile=more --timeout=0 tests/test_model.py`` tries many more lives, new ones each time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent.event import Event
from greenlet import greenlet
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from stages import PATIENCE

import ngi_gevent
from ngi_gevent import ConnectionClosed, testing

SIDES = CLIENT, SERVER = "client", "server"


class Failure(Exception):
    """The exception that handlers and iterators raise."""


def kind_of(reason: Any) -> str:
    """Return the part of a reason, or of an exception, on which all implementations must agree."""
    if isinstance(reason, str):
        return reason
    return "broken" if isinstance(reason, OSError) else type(reason).__name__


# The model.


class ModelConnection:
    """One side of a connection, according to the contract."""

    def __init__(self, world: ModelWorld) -> None:
        self.world = world
        self.peer: ModelConnection
        self.state = "open"
        self.broken = False  # whether output is dropped, since the peer has aborted
        self.handler: Any = None
        self.reason: Any = None  # the reason that the handler has yet to receive
        self.exceptions: list[BaseException] = []
        self.wire: deque[Any] = deque()  # data in transit to the peer
        self.begin: Callable[[Any], object] | None = None

    def __bool__(self) -> bool:
        return self.state == "open" and not self.broken

    # The state table.

    def set_handler(self, handler: Any) -> None:
        self.handler = handler

    def write(self, data: Any) -> None:
        if not self:
            raise ConnectionClosed
        self.wire.append(data)

    def writelines(self, lines: Any) -> None:
        self.write(iter(lines))

    def close(self) -> None:
        if self.state == "open":
            self.end(None)
        self.reason = None

    def abort(self) -> None:
        self.reason = None
        if self.state != "closed":
            self.state = "closed"
            self.wire = deque([ConnectionResetError()])

    def stop(self) -> None:
        if self.state == "open":
            self.end("stopped")

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Do nothing: the model does not say when the callback comes."""

    def end(self, reason: Any) -> None:
        self.state, self.reason = "closing", reason
        self.wire.append("end of input")

    # One callback at a time.

    def step(self) -> bool:
        """Take the next step, and return whether there was one."""
        if self.begin is not None:
            begin, self.begin = self.begin, None
            self.call("connected" if self.handler_is_client else "the server", begin, self)
        elif self.state != "open":
            self.discard()
            return self.tell_end()
        elif self.handler is None:
            return False
        elif self.exceptions:
            self.tell_exception()
        elif self.peer.wire:
            self.take(self.peer.wire.popleft())
        else:
            return False
        return True

    handler_is_client = False

    def discard(self) -> None:
        aborted = any(isinstance(item, OSError) for item in self.wire)
        lost = any(not isinstance(item, (str, OSError)) for item in self.peer.wire)
        self.peer.broken = self.peer.broken or (aborted and lost)
        self.peer.wire.clear()

    def take(self, item: Any) -> None:
        if isinstance(item, bytes):
            self.call("handle_input", self.handler.handle_input, self, item)
        elif isinstance(item, (str, OSError)):
            self.end(item)
        else:
            self.pull(item)

    def pull(self, lines: Iterator[Any]) -> None:
        wire = self.peer.wire
        try:
            data = next(lines)
            if not isinstance(data, bytes):
                raise TypeError
        except StopIteration:
            return
        except BaseException as error:
            if self.peer.state == "open":
                self.peer.exceptions.append(error)
            else:
                self.world.logged.append("an iterable given to writelines")
            return
        if self.peer.state != "closed":
            wire.appendleft(lines)
            wire.appendleft(data)

    def tell_exception(self) -> None:
        error = self.exceptions.pop(0)
        handle_exception = getattr(self.handler, "handle_exception", None)
        if handle_exception is not None:
            self.call("handle_exception", handle_exception, self, error)
        else:
            self.failed("an iterable given to writelines", error)

    def tell_end(self) -> bool:
        if self.handler is None or self.reason is None:
            return False
        reason, self.reason = self.reason, None
        handle_close = getattr(self.handler, "handle_close", None)
        if handle_close is not None:
            try:
                handle_close(self, reason)
            except BaseException:
                self.world.logged.append("handle_close")
        return True

    def call(self, where: str, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            self.failed(where, error)

    def failed(self, where: str, error: BaseException) -> None:
        self.world.logged.append(where)
        if self.state == "open":
            self.end(error)


# The handlers, which are the same everywhere.


class Handler:
    """A handler that carries out the commands that it receives."""

    def __init__(self, player: Player, version: int) -> None:
        self.player = player
        self.version = version

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.player.check(connection)
        self.player.takes_turn(lambda: self.handle(connection, data))

    def handle(self, connection: Any, data: bytes) -> None:
        trace = self.player.trace
        for position, command in enumerate(data):
            if not connection:
                break
            if trace and trace[-1][:2] == ("input", self.version):
                trace[-1] = (*trace[-1][:2], trace[-1][2] + chr(command))
            else:
                trace.append(("input", self.version, chr(command)))
            if command == ord("S"):
                later = type(self)(self.player, self.version + 1)
                connection.set_handler(later)
                later.handle(connection, data[position + 1 :])
                break
            self.player.do(connection, chr(command))


class ClosingHandler(Handler):
    def handle_close(self, connection: Any, reason: Any) -> None:
        self.player.check(connection)
        assert not connection
        with pytest.raises(ConnectionClosed):
            connection.write(b"0")
        self.player.trace.append(("close", self.version, kind_of(reason)))
        self.player.takes_turn(lambda: self.player.perform(connection, "handle_close"))


class FullHandler(ClosingHandler):
    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.player.check(connection)
        self.player.trace.append(("exception", self.version, kind_of(exception)))
        self.player.takes_turn(lambda: self.player.perform(connection, "handle_exception"))


HANDLERS = [FullHandler, FullHandler, ClosingHandler, Handler]


class Player:
    """One side of one connection in one world: its connection, its handler, its prepared commands, and its trace."""

    def __init__(self, world: World, handler: type[Handler]) -> None:
        self.world = world
        self.handler = handler
        self.connection: Any = None
        self.script: dict[str, str] = {}
        self.holds = False
        self.trace: list[Any] = []
        self.gone = 0
        self.aborts_late = False  # whether output of an earlier callback can be lost in an abort
        self._in_callback = False

    def check(self, connection: Any) -> None:
        assert connection is self.connection

    def takes_turn(self, callback: Callable[[], None]) -> None:
        """Make a callback.  Callbacks of one connection must not overlap (rule 5)."""
        assert not self._in_callback
        self._in_callback = True
        try:
            callback()
        finally:
            self._in_callback = False
            self.world.happened()

    def connected(self, connection: Any) -> None:
        self.connection = connection
        self.world.happened()
        connection.when_closed(self.is_gone)
        if not self.holds:
            self.set_handler()
        self.perform(connection, "begin")

    def failed_connect(self, reason: Any) -> None:
        self.trace.append(("failed", kind_of(reason)))

    def set_handler(self) -> None:
        self.holds = False
        self.connection.set_handler(self.handler(self, 0))

    def is_gone(self) -> None:
        self.gone += 1
        if not self.holds:  # otherwise its handler would miss the end
            for end in self.connection.close, self.connection.abort, self.connection.close:
                end()
        with pytest.raises(ConnectionClosed):
            self.connection.writelines([b"0"])
        self.world.happened()

    def perform(self, connection: Any, callback: str) -> None:
        for command in self.script.pop(callback, ""):
            self.aborts_late |= callback != "begin" and command in ABORTS
            self.do(connection, command)

    def do(self, connection: Any, command: str) -> None:
        try:
            self._do(connection, command)
        except ConnectionClosed:
            self.trace.append(("refused", command))

    def _do(self, connection: Any, command: str) -> None:
        if command.islower():
            connection.write(command.upper().encode())
        elif command in LINES:
            if command == "W":
                on_thread(lambda: connection.write(b"1"))
            connection.writelines(lines(connection, command))
        else:
            DEEDS[command](connection)


def lines(connection: Any, command: str) -> Iterator[Any]:
    if command in "IWFNY":
        yield b"2"
        yield b"3"
    if command == "F":
        raise Failure
    if command == "N":
        yield "no bytes"
    if command == "Y":
        connection.close()
    if command == "Z":
        connection.abort()
    yield b"4"


def on_greenlet(*calls: Callable[[], object]) -> None:
    """Make *calls* on another greenlet, now."""
    greenlet(lambda: [call() for call in calls]).switch()


def on_thread(*calls: Callable[[], object]) -> None:
    """Make *calls* on another native thread, and wait for that thread."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            for call in calls:
                call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def here(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def fail(connection: Any) -> None:
    raise Failure


LINES = "IWFNYZ"
DEEDS: dict[str, Callable[[Any], object]] = {
    "0": lambda connection: None,
    "1": lambda connection: None,
    "2": lambda connection: None,
    "3": lambda connection: None,
    "4": lambda connection: None,
    "E": lambda connection: connection.write(b"1"),
    "S": lambda connection: None,  # handle_input treats it differently
    "C": lambda connection: connection.close(),
    "D": lambda connection: on_greenlet(connection.close, connection.close),
    "T": lambda connection: on_thread(connection.close),
    "A": lambda connection: connection.abort(),
    "B": lambda connection: on_greenlet(connection.abort, connection.abort),
    # The second call is necessary.  Earlier output of the connection's thread can leave before the other thread's
    # abort.
    "U": lambda connection: (on_thread(connection.abort), connection.abort()),
    "K": lambda connection: (connection.abort(), connection.close()),
    "J": lambda connection: (connection.close(), connection.abort()),
    "X": fail,
}
ENDS = "CDTABUKJ"
ABORTS = "ABUKJZ"


def without_last_words(trace: list[Any]) -> list[Any]:
    """Return a trace without the events that an abort by the peer can drop: last harmless bytes, and the reason."""
    *before, last = trace or [("nothing",)]
    if before and last[0] == "close" and before[-1][0] == "input":
        event, version, text = before.pop()
        if text.rstrip("01234"):
            before.append((event, version, text.rstrip("01234")))
    return [*before, "ended" if last[-1] in ("end of input", "broken") else last]


# The worlds: the model, and the implementations.


class World:
    """A place where connections live: the model, or an implementation."""

    def __init__(self) -> None:
        self.pairs: list[dict[str, Player]] = []
        self.logged: list[str] = []

    def happened(self) -> None:
        """Do something after each callback."""

    def player(self, pair: int, side: str) -> Player:
        return self.pairs[pair][side]

    def connect(self, handlers: dict[str, type[Handler]], holds: dict[str, bool], beginner: str, begin: str) -> None:
        players = {side: Player(self, handlers[side]) for side in SIDES}
        for side in SIDES:
            players[side].holds = holds[side]
        players[beginner].script["begin"] = begin
        self.pairs.append(players)
        self.make(**players)

    def make(self, client: Player, server: Player) -> None:
        raise NotImplementedError

    def stop(self, pair: int, way: Callable[..., None]) -> None:
        raise NotImplementedError

    def seen(self) -> Any:
        """Return everything on which the model and the implementations must agree."""
        pairs = [(pair[one], pair[other]) for pair in self.pairs for one, other in (SIDES, SIDES[::-1])]
        return (
            [without_last_words(one.trace) if other.aborts_late else list(one.trace) for one, other in pairs],
            [bool(one.connection) for one, other in pairs],
            sorted(self.logged),
        )

    def settle(self, expected: Any) -> None:
        """Wait for all consequences.  The model gives the *expected* ones."""

    def end(self) -> None:
        """End all connections and listeners."""


class ModelWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self._ends: list[ModelConnection] = []

    def make(self, client: Player, server: Player) -> None:
        ends = client_end, server_end = ModelConnection(self), ModelConnection(self)
        client_end.peer, server_end.peer = server_end, client_end
        client_end.handler_is_client = True
        for end, player in zip(ends, (client, server), strict=True):
            end.begin = player.connected
        self._ends += ends

    def stop(self, pair: int, way: Callable[..., None]) -> None:
        self.player(pair, SERVER).connection.stop()

    def settle(self, expected: Any) -> None:
        while sum(end.step() for end in self._ends):  # sum and not any, so that each end has its turn
            pass


class ImplementedWorld(World):
    implementation: Any

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Any] = []

    def make(self, client: Player, server: Player) -> None:
        self.listeners.append(self.implementation.listener(None, server.connected, linger_timeout=None))
        self.listeners[-1].connect(client, linger_timeout=None)  # no timeout ends a connection here

    def stop(self, pair: int, way: Callable[..., None]) -> None:
        way(self.listeners[pair].close)

    def end(self) -> None:
        for pair in self.pairs:
            for player in pair.values():
                player.connection.abort()
        for listener in self.listeners:
            listener.close()
        self.implementation.wait(PATIENCE)
        self.implementation.close()
        assert [[player.gone for player in pair.values()] for pair in self.pairs] == [[1, 1]] * len(self.pairs)


class MemoryWorld(ImplementedWorld):
    def __init__(self) -> None:
        super().__init__()
        self.implementation = testing.Implementation()


class TCPWorld(ImplementedWorld):
    """Connections on TCP, where each step takes some time.

    Messages on another connection go back and forth, as a clock, until the step is complete.
    """

    #: The ticks of that clock in which everything must happen, since the loop and the kernel treat events in their
    #: order.
    TICKS = 100

    def __init__(self) -> None:
        super().__init__()
        self.implementation = ngi_gevent.Implementation()
        self._ticked, self._happened = Event(), Event()
        clock = self.implementation.listener(None, Answer)
        self.listeners_of_clock = [clock]
        self._clock: Any = None
        clock.connect(self)
        assert self._ticked.wait(PATIENCE)

    # The world is the handler of its clock.

    def connected(self, connection: Any) -> None:
        self._clock = connection
        connection.set_handler(self)
        self._ticked.set()

    def failed_connect(self, reason: Any) -> None:
        raise AssertionError(reason)

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._ticked.set()

    def _tick(self) -> None:
        self._ticked.clear()
        self._clock.write(b"tick")
        assert self._ticked.wait(PATIENCE)

    def happened(self) -> None:
        self._happened.set()

    def make(self, client: Player, server: Player) -> None:
        super().make(client, server)
        # A connection attempt resolves names on another thread, which that clock does not cover.
        while client.connection is None or server.connection is None:
            self._happened.clear()
            assert self._happened.wait(PATIENCE)

    def settle(self, expected: Any) -> None:
        for _ in range(self.TICKS):
            if self.seen() == expected:
                break
            self._tick()
        for _ in range(3):  # nothing more happens
            self._tick()

    def end(self) -> None:
        self._clock.close()
        for listener in self.listeners_of_clock:
            listener.close()
        super().end()


class Answer:
    def __init__(self, connection: Any) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: Any, data: bytes) -> None:
        connection.write(data)


# The steps.


def texts(alphabet: str, most: int = 3) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), max_size=most)


@st.composite
def commands(draw: Any, both_listen: bool) -> str:
    """Draw commands for one callback: harmless ones, then perhaps an iterator, then perhaps an end.

    Unless *both_listen*, there are no iterators, no aborts, and no commands for the peer.
    """
    text = draw(texts("0ES"))
    kind = draw(st.sampled_from(["end", "raise", *["tell", "lines", "lines and end"] * both_listen]))
    if kind == "tell":
        return text + draw(st.sampled_from((ENDS + "ESX" + LINES).lower()))
    if kind.startswith("lines"):
        text += draw(st.sampled_from(LINES))
    if kind.endswith("end"):
        text += draw(st.sampled_from(ENDS if both_listen else "CDT")) + draw(texts("0E"))
    return text + "X" * (kind == "raise")


pairs = st.integers(0, 6)
sides = st.sampled_from(SIDES)
ways = st.sampled_from([here, on_greenlet, on_thread])


class Lives(RuleBasedStateMachine):
    """Lives of connections, in three worlds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelWorld()
        self.worlds: list[World] = [self.model, MemoryWorld(), TCPWorld()]
        self.current: World = self.model
        self.log = logging.getLogger("ngi_gevent.connection")
        self.log.addFilter(self.note)

    def note(self, record: logging.LogRecord) -> bool:
        """Record a log entry for the current world."""
        self.current.logged.append(record.args[1])  # type: ignore[index, arg-type]
        return False

    def teardown(self) -> None:
        try:
            for world in self.worlds:
                self.current = world
                world.end()
        finally:
            self.log.removeFilter(self.note)

    def everywhere(self, deed: Callable[[World], None]) -> None:
        expected = None
        for world in self.worlds:
            self.current = world
            deed(world)
            world.settle(expected)
            expected = expected or world.seen()

    # The state of the model decides what can be done.

    def living(self) -> list[int]:
        """Return the numbers of the pairs in which at least one side can still receive a callback."""
        return [
            number
            for number, pair in enumerate(self.model.pairs)
            if any(player.connection or player.holds for player in pair.values())
        ]

    def chosen(self, pair: int) -> int:
        """Return the number of a pair, usually one that lives."""
        living = self.living()
        return living[pair % len(living)] if living and pair else len(self.model.pairs) - 1

    def both_listen(self, number: int) -> bool:
        """Return whether both sides take output of iterators at once."""
        players = [self.model.player(number, side) for side in SIDES]
        return all(player.connection and not player.holds for player in players)

    @precondition(lambda self: len(self.living()) < 3)
    @rule(
        handlers=st.fixed_dictionaries({side: st.sampled_from(HANDLERS) for side in SIDES}),
        holds=st.fixed_dictionaries({side: st.sampled_from([False, True]) for side in SIDES}),
        beginner=sides,
        data=st.data(),
    )
    def connect(self, handlers: Any, holds: Any, beginner: str, data: Any) -> None:
        """Add a connection on which one side carries out commands first."""
        begin = data.draw(st.sampled_from(["", "A", "J"]) | commands(not any(holds.values())))
        self.everywhere(lambda world: world.connect(handlers, holds, beginner, begin))

    @precondition(lambda self: self.model.pairs)
    @rule(pair=pairs, side=sides, way=ways, data=st.data())
    def say(self, pair: int, side: str, way: Any, data: Any) -> None:
        """Write commands for the peer."""
        number = self.chosen(pair)
        text = data.draw(commands(self.both_listen(number)))

        def write(world: World) -> None:
            player = world.player(number, side)
            try:
                way(lambda: player.connection.write(text.encode()))
            except ConnectionClosed:
                player.trace.append(("refused", text))

        self.everywhere(write)

    @precondition(lambda self: self.model.pairs)
    @rule(pair=pairs, side=sides, way=ways, data=st.data())
    def do(self, pair: int, side: str, way: Any, data: Any) -> None:
        """Carry out a command outside of callbacks."""
        number = self.chosen(pair)
        quiet = not self.model.player(number, side).connection.wire
        command = data.draw(st.sampled_from("CD" + "AK" * quiet + LINES * self.both_listen(number)))

        def do(world: World) -> None:
            player = world.player(number, side)
            way(lambda: player.do(player.connection, command))

        self.everywhere(do)

    @precondition(lambda self: any(player.holds for pair in self.model.pairs for player in pair.values()))
    @rule(way=ways)
    def set_handler(self, way: Any) -> None:
        """Set the first handler that is still missing."""

        def set_first(world: World) -> None:
            way(next(player for pair in world.pairs for player in pair.values() if player.holds).set_handler)

        self.everywhere(set_first)

    @precondition(lambda self: self.model.pairs)
    @rule(pair=pairs, side=sides, callback=st.sampled_from(["handle_exception", "handle_close"]), data=st.data())
    def arm(self, pair: int, side: str, callback: str, data: Any) -> None:
        """Prepare commands for a callback."""
        number = self.chosen(pair)
        text = data.draw(commands(self.both_listen(number)))
        for world in self.worlds:
            world.player(number, side).script[callback] = text

    @precondition(lambda self: self.model.pairs)
    @rule(pair=pairs, way=st.sampled_from([here, on_greenlet]))  # another thread would wait for this one
    def stop(self, pair: int, way: Any) -> None:
        """Close the listener."""
        number = self.chosen(pair)
        self.everywhere(lambda world: world.stop(number, way))

    @invariant()
    def all_have_seen_the_same(self) -> None:
        expected, memory, tcp = (world.seen() for world in self.worlds)
        assert memory == expected, f"in memory: {memory}, not {expected}"
        assert tcp == expected, f"on TCP: {tcp}, not {expected}"


@pytest.mark.slow
def test_random_lives_of_connections_match_the_model(no_socket_left: None) -> None:
    run_state_machine_as_test(Lives, settings=Lives.TestCase.settings)
