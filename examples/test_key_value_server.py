"""How the key-value server is tested: in memory, on sockets, with its input cut, and with a network that fails.

Run by ``pytest``: the fixtures ``ngi`` and ``ngi_implementation`` are there once ngi_gevent is installed.
"""

from __future__ import annotations

from typing import Any

import pytest
from key_value_server import MAX_LINE, MAX_VALUE, KeyValueHandler, key_value_server

from ngi_gevent.testing import Faults, Faulty, Input, Plan, Recorder, check_chunking, check_work, converse


def fresh(connection: Any) -> KeyValueHandler:
    """The server with a store for each connection, since nothing may depend on what other tests have stored."""
    return KeyValueHandler(connection, {})


# First, without any network: what goes in, and what comes out.


def test_a_value_is_stored_and_found() -> None:
    assert converse(fresh, [b"set colour 4\nblue\n", b"get colour\n"]).data == b"ok\nvalue 4\nblue\n"


def test_what_is_not_there_is_said_not_to_be() -> None:
    assert converse(fresh, [b"get colour\n", b"delete colour\n"]).data == b"nothing\nnothing\n"


def test_a_value_is_deleted() -> None:
    assert converse(fresh, [b"set a 1\n!\n", b"delete a\n", b"get a\n"]).data == b"ok\nok\nnothing\n"


def test_a_value_may_be_empty_or_look_like_a_request() -> None:
    answer = converse(fresh, [b"set a 0\n\nget a\n", b"set b 6\nget a\n\nget b\n"])
    assert answer.data == b"ok\nvalue 0\n\nok\nvalue 6\nget a\n\n"


def test_quit_ends_the_connection_and_nothing_after_it_counts() -> None:
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


# TCP cuts a stream where it likes: that must make no difference, wherever it is.


@pytest.mark.parametrize(
    "conversation",
    [
        b"set colour 4\nblue\nget colour\nquit\n",
        [b"set a 80\n" + b"one, two " * 8 + b"and more\n", b"get a\n", b"delete a\n", b"get a\n"],
        f"set größe 24\n{'großes ' * 3}\nget größe\nquit\n".encode(),
        b"get a\nnonsense\nget a\n",
    ],
)
def test_it_makes_no_difference_how_the_input_is_cut(conversation: bytes | list[bytes]) -> None:
    check_chunking(fresh, conversation)


def test_a_large_value_is_not_copied_again_and_again() -> None:
    check_work(fresh, b"set a 500\n" + b"x" * 500 + b"\n")


# The same test in memory and on real sockets: what takes time there is waited for.


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

    listener.close()  # or the fixture would say what is left over


# A network that fails.  What a plan does is the same in memory and on sockets.


def test_half_a_value_is_not_stored(ngi_implementation: Any) -> None:
    store: dict[str, bytes] = {}
    faulty = Faulty(ngi_implementation, Plan((Faults(server=Input(pieces=(3,), resets=15)),)))
    listener = faulty.listener(None, key_value_server(store))
    client = Recorder()
    listener.connect(client)
    client.wait_connected().write(b"set colour 4\nblue\n")
    assert isinstance(client.wait_closed(), ConnectionResetError)
    assert store == {}
    listener.close()


@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_network_does_an_answer_is_right_or_missing(ngi: Any, seed: int) -> None:
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
