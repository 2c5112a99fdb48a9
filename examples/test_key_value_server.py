"""The tests of the key-value server: in memory, on sockets, in a simulation, and with a network that fails.

Run them with ``pytest``.  The fixtures ``ngi`` and ``ngi_implementation`` come with ngi_gevent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from key_value_server import MAX_LINE, MAX_VALUE, KeyValueHandler, key_value_server

import ngi_gevent
from ngi_gevent import blocking
from ngi_gevent.testing import Faults, Faulty, InputFaults, Plan, Recorder, check_chunking, check_work, converse
from ngi_gevent.testing.simulation import FailedSeed, Simulation, explore


def fresh(connection: Any) -> KeyValueHandler:
    """A server with a store for each connection, so that no test depends on data of another test."""
    return KeyValueHandler(connection, {})


# The first tests have no network: only input and output.


def test_a_value_is_stored_and_found() -> None:
    assert converse(fresh, [b"set colour 4\nblue\n", b"get colour\n"]).data == b"ok\nvalue 4\nblue\n"


def test_a_missing_value_is_reported() -> None:
    assert converse(fresh, [b"get colour\n", b"delete colour\n"]).data == b"nothing\nnothing\n"


def test_a_value_is_deleted() -> None:
    assert converse(fresh, [b"set a 1\n!\n", b"delete a\n", b"get a\n"]).data == b"ok\nok\nnothing\n"


def test_a_value_can_be_empty_or_resemble_a_request() -> None:
    answer = converse(fresh, [b"set a 0\n\nget a\n", b"set b 6\nget a\n\nget b\n"])
    assert answer.data == b"ok\nvalue 0\n\nok\nvalue 6\nget a\n\n"


def test_quit_ends_the_connection_and_later_input_is_ignored() -> None:
    assert converse(fresh, [b"quit\nget a\n"]) == (b"", "end of input")


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\n",
        b"\n",
        b"get\n",
        b"get a b\n",
        b"set a\n",
        b"set a many\n",
        b"set a -1\n",
        b"set a %d\n" % (MAX_VALUE + 1),
        b"set a 1\nmore than one\n",
        b"get \xff\n",
        b"x" * (MAX_LINE + 1),
    ],
)
def test_a_bad_request_is_answered_and_ends_the_connection(request_: bytes) -> None:
    answer = converse(fresh, [request_])
    assert answer.data.startswith(b"error ")
    assert answer.closed == "end of input"


# TCP can cut a stream anywhere.  The place must not make a difference.


@pytest.mark.parametrize(
    "conversation",
    [
        b"set colour 4\nblue\nget colour\nquit\n",
        [b"set a 80\n" + b"one, two " * 8 + b"and more\n", b"get a\n", b"delete a\n", b"get a\n"],
        f"set größe 24\n{'großes ' * 3}\nget größe\nquit\n".encode(),
        b"get a\nnonsense\nget a\n",
    ],
)
def test_the_answers_do_not_depend_on_how_the_input_is_cut(conversation: bytes | list[bytes]) -> None:
    check_chunking(fresh, conversation)


def test_a_large_value_is_not_copied_again_and_again() -> None:
    check_work(fresh, b"set a 500\n" + b"x" * 500 + b"\n")


# The same test in memory and on real sockets, which take time.  The recorder waits for that.


def test_clients_share_the_store(ngi_implementation: Any) -> None:
    listener = ngi_implementation.listener(None, key_value_server())
    writer, reader = Recorder(), Recorder()
    listener.connect(writer)
    writer.wait_connected().write(b"set colour 4\nblue\n")
    writer.expect(b"ok\n")

    listener.connect(reader)
    reader.wait_connected().write(b"get colour\nquit\n")
    reader.expect(b"value 4\nblue\n")
    assert reader.wait_closed() == "end of input"
    assert writer.connection

    listener.close()  # otherwise the fixture would report it as left over


# A network that fails.  The effect of a plan is the same in memory and on sockets.


def test_half_a_value_is_not_stored(ngi_implementation: Any) -> None:
    store: dict[str, bytes] = {}
    faulty = Faulty(ngi_implementation, Plan((Faults(server=InputFaults(pieces=(3,), resets=15)),)))
    listener = faulty.listener(None, key_value_server(store))
    client = Recorder()
    listener.connect(client)
    client.wait_connected().write(b"set colour 4\nblue\n")
    assert isinstance(client.wait_closed(), ConnectionResetError)
    assert store == {}
    listener.close()


@pytest.mark.parametrize("seed", range(50))
def test_on_any_network_an_answer_is_right_or_missing(ngi: Any, seed: int) -> None:
    """A test that fails shows its plan, and its seed makes it again."""
    store: dict[str, bytes] = {}
    faulty = Faulty(ngi, Plan.from_seed(seed))
    listener = faulty.listener(None, key_value_server(store))
    clients = [Recorder() for _ in range(5)]
    for client in clients:
        listener.connect(client)
        if client.connection:
            client.connection.write(b"set a 3\none\nget a\n")
    for client in clients:
        assert b"ok\nvalue 3\none\n".startswith(client.data)
        if client.connection:
            client.connection.abort()
    assert store in ({}, {"a": b"one"})
    listener.close()


# Clients that wait, in a simulation.  Each is on its own host, in virtual time, under any number of schedules.

ADDRESS = ("server", 8000)


def ask(host: Any, request_: bytes, timeout: float = 1) -> bytes:
    """Send one request from *host*, and return the answer.  Blocks until it arrives."""
    output, input = blocking.open(ADDRESS, connect=host.connect, timeout=timeout)
    output.write(request_ + b"quit\n")
    answer = input.read()
    output.close()
    return answer


def add_one(host: Any) -> None:
    """Read a number, and write one more.  This loses an update if two clients do it at once."""
    number = int(ask(host, b"get n\n").splitlines()[1])
    ask(host, b"set n 1\n%d\n" % (number + 1))


def add_one_alone(host: Any) -> None:
    """Do the same with a token, which one client has at a time: ``delete`` succeeds for only one client."""
    while ask(host, b"delete token\n") != b"ok\n":
        gevent.sleep(0.01)
    add_one(host)
    ask(host, b"set token 0\n\n")


def count_by_two(simulation: Simulation, add: Callable[[Any], None]) -> None:
    """Let two clients add one each, and begin at times that the seed draws."""
    store = {"n": b"0", "token": b""}
    simulation.host("server").listener(ADDRESS, key_value_server(store))

    def begin_later(client: Any) -> None:
        gevent.sleep(simulation.random.random() / 10)
        add(client)

    clients = [simulation.host(name) for name in ("one", "other")]
    gevent.joinall([client.spawn(begin_later, client) for client in clients])
    assert store["n"] == b"2"


def test_a_lost_update_is_found_and_its_seed_reproduces_it() -> None:
    def test(simulation: Simulation) -> None:
        count_by_two(simulation, add_one)

    with pytest.raises(FailedSeed, match="run it again with Simulation") as failed:
        explore(test, range(1000))
    with pytest.raises(AssertionError, match="2"), Simulation(replay=failed.value.replay) as simulation:
        test(simulation)


@pytest.mark.ngi_seeds(20)
def test_no_update_is_lost_by_clients_that_take_turns(simulation: Simulation) -> None:
    count_by_two(simulation, add_one_alone)


def ask_until_answered(host: Any, request_: bytes) -> tuple[bytes, int]:
    """Repeat the request until there is an answer, with pauses that double.  Return the answer, and the number of
    attempts.
    """
    for attempt in itertools.count(1):
        try:
            return ask(host, request_), attempt
        except (ngi_gevent.ConnectionFailed, ngi_gevent.Timeout):
            gevent.sleep(min(0.5 * 2**attempt, 8))
    raise AssertionError("unreachable")


def test_a_client_that_retries_gets_its_answer_after_a_partition(simulation: Simulation) -> None:
    server, client = simulation.host("server"), simulation.host("client")
    server.listener(ADDRESS, key_value_server({"colour": b"blue"}))
    asking = client.spawn(ask_until_answered, client, b"get colour\n")
    simulation.partition(server, client)
    gevent.sleep(10)
    assert not asking.ready()
    simulation.heal(server, client)
    assert asking.get() == (b"value 4\nblue\n", 4)
    assert simulation.now() < 20
