"""``SansIO``: the events of a parser that does no input or output, on every implementation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from stages import Witness

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.adapters import SansIO
from ngi_gevent.sockets.dispatcher import Dispatcher


class BadWord(Exception):
    """The exception for input that the parser does not accept."""


class Words:
    """A parser of words that end in spaces.  It answers ``ping``, pauses after ``wait``, and refuses ``bad``."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.start = 0  # the start of the next word
        self.output = b""
        self.is_waiting = False
        self.has_ended = False

    def receive(self, data: bytes) -> None:
        self.has_ended = self.has_ended or not data
        del self.buffer[: self.start]
        self.start = 0
        self.buffer += data

    def events(self) -> Iterator[bytes]:
        while not self.is_waiting and (end := self.buffer.find(b" ", self.start)) >= 0:
            word, self.start = bytes(self.buffer[self.start : end]), end + 1
            if word == b"bad":
                raise BadWord("bad")
            if word == b"ping":
                self.output += b"pong "
                continue
            self.is_waiting = word == b"wait"
            yield word
        if self.has_ended and self.start < len(self.buffer) and not self.is_waiting:
            rest, self.start = bytes(self.buffer[self.start :]), len(self.buffer)
            yield b"rest " + rest

    def to_send(self) -> bytes:
        output, self.output = self.output, b""
        return output


class Listing(Witness):
    """A handler that sends each word back in brackets."""

    def connected(self, connection: Any) -> None:
        self.words = Words()
        self.events: list[Any] = []
        super().connected(SansIO(connection, self.words.receive, self.words.events, self.words.to_send, (BadWord,)))

    def handle_input(self, connection: Any, event: Any) -> None:
        self.events.append(event)
        self.stage.happened()
        if isinstance(event, BadWord):
            connection.write(b"refused ")
            return
        connection.write(b"[%b] " % event)
        if event == b"wait":
            self.words.is_waiting = False
            connection.resume()
        elif event == b"close":
            connection.close()
        elif event == b"pause":
            connection.pause_reading()
        elif event == b"long":
            connection.write(bytes(100_000))


def test_events_are_delivered_one_by_one_and_answered(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one two th")
    client.connection.write(b"ree ")
    stage.until(lambda: client.data == b"[one] [two] [three] ")
    assert served.events == [b"one", b"two", b"three"]


def test_the_parser_can_pause_until_the_handler_resumes_it(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one wait two ")
    stage.until(lambda: client.data == b"[one] [wait] [two] ")


def test_output_of_the_parser_is_sent_even_without_an_event(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"ping ")
    stage.until(lambda: client.data == b"pong ")
    client.connection.write(b"one ping two ")
    stage.until(lambda: len(client.data.split()) == 4)
    assert client.data == b"pong [one] [two] pong "


def test_the_parser_receives_the_end_of_input(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one tw")
    client.connection.write_eof()
    stage.until(lambda: client.closed)
    assert client.data == b"[one] [rest tw] "
    assert served.closed == "end of input"


def test_a_mistake_of_the_peer_is_the_last_event_and_the_reason(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one bad two ")
    stage.until(lambda: client.closed and served.closed)
    assert client.data == b"[one] refused "
    assert served.events[0] == b"one"
    assert isinstance(served.events[1], BadWord)
    assert served.closed is served.events[1]


def test_no_event_follows_the_handlers_close(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one close two bad ")
    stage.until(lambda: client.closed)
    assert served.events == [b"one", b"close"]
    assert served.closed is None


def test_many_events_of_one_piece_are_delivered_in_order(stage):
    client, served = stage.talk(Listing)
    words = [b"%d" % number for number in range(50)]
    client.connection.write(b" ".join(words) + b" ")
    stage.until(lambda: client.data == b"".join(b"[%b] " % word for word in words))
    assert served.events == words


def test_a_handler_that_takes_long_handles_at_most_three_events_in_a_turn(tcp, monkeypatch):
    """Otherwise, everything else on the hub would wait for all events of one piece of input."""

    class Slow(Listing):
        def handle_input(self, connection, event):
            now[0] += 0.02
            turns.append(gevent.get_hub().loop.iteration)
            super().handle_input(connection, event)

    now, turns = [1.0], []
    monkeypatch.setattr(Dispatcher.current().time, "now", lambda: now[0])
    peer = tcp.peer(tcp.listen(Slow))
    peer.send(b"a " * 8)
    tcp.until(lambda: len(turns) == 8)
    assert max(Counter(turns).values()) <= 3


def test_no_event_is_pulled_while_reading_is_paused(stage):
    client, served = stage.talk(Listing)
    client.connection.write(b"one pause two ")
    stage.until(lambda: client.data == b"[one] [pause] ")
    assert (served.events, served.words.start) == ([b"one", b"pause"], 10)
    served.connection.resume_reading()
    stage.until(lambda: client.data == b"[one] [pause] [two] ")


def test_no_event_is_pulled_while_much_output_is_pending(stage):
    client, served = stage.talk(Listing)
    client.connection.pause_reading()
    # This is more than the kernel accepts while the client does not read.
    client.connection.write(b"long " * 300)
    client.connection.write_eof()
    stage.until(lambda: served.connection.output_pending > 100_000)
    assert served.connection.output_pending < 500_000
    client.connection.resume_reading()
    stage.until(lambda: client.closed)
    assert len(client.data) == 300 * (100_000 + len(b"[long] "))


def test_other_exceptions_of_the_parser_count_as_the_handlers(stage, caplog):
    def raise_it(data: bytes) -> None:
        raise ZeroDivisionError

    class Failing(Witness):
        def connected(self, connection: Any) -> None:
            super().connected(SansIO(connection, raise_it, list))

    client, served = stage.talk(Failing)
    client.connection.write(b"x")
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, ZeroDivisionError)
    assert "handle_input raised an exception" in caplog.text


class Detachable(Listing):
    """A handler whose connection below can have it as its handler later."""

    def connected(self, connection: Any) -> None:
        self.meet(connection)
        self.words = Words()
        self.events: list[Any] = []
        SansIO(connection, self.words.receive, self.words.events).set_handler(self)


@pytest.mark.parametrize("first", [b"", b"one "])
def test_the_parser_keeps_the_events_after_a_detach(stage, first):
    class Changing(Detachable):
        def handle_input(self, connection: Any, event: Any) -> None:
            super().handle_input(connection, event)
            if event == b"change":
                below, rest = connection.detach()
                assert rest == b""
                below.set_handler(self)

    client, served = stage.talk(Changing)
    client.connection.write(first + b"change two three ")
    stage.until(lambda: client.data.endswith(b"[change] "))
    client.connection.write(b"end")
    stage.until(lambda: client.data.endswith(b"[end] "))
    assert served.events == [*first.split(), b"change", b"end"]
    assert list(served.words.events()) == [b"two", b"three"]


def test_events_requested_before_a_detach_stay_in_the_parser(stage):
    class Changing(Detachable):
        def handle_input(self, connection: Any, event: Any) -> None:
            super().handle_input(connection, event)  # requests the events after b"wait"
            if event == b"wait":
                below, _ = connection.detach()
                below.set_handler(self)

    client, served = stage.talk(Changing)
    client.connection.write(b"wait two ")
    stage.until(lambda: client.data.endswith(b"[wait] "))
    client.connection.write(b"end")
    stage.until(lambda: served.closed or client.data.endswith(b"[end] "))
    assert served.closed is None
    assert served.events == [b"wait", b"end"]
    assert list(served.words.events()) == [b"two"]


@pytest.mark.slow
def test_answers_do_not_depend_on_how_the_input_is_cut():
    def serve(connection: Any) -> None:
        words = Words()

        class Handler:
            def handle_input(self, connection: Any, event: Any) -> None:
                connection.write(b"[%b]" % event)

        SansIO(connection, words.receive, words.events).set_handler(Handler())

    testing.check_chunking(serve, b"x" * 100 + b" yy " + b"z" * 300 + b" ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"", list), "receive must be callable; got b''"),
        ((print, [1]), r"events must be callable; got \[1\]"),
        ((print, list, b"x"), "to_send must be callable, or None; got b'x'"),
    ],
)
def test_the_functions_of_the_parser_are_checked(arguments, message):
    with pytest.raises(TypeError, match=message):
        SansIO(testing.Connection(), *arguments)


def test_flush_after_the_end_is_an_error_only_if_output_is_left():
    connection = testing.Connection(testing.Recorder())
    words = Words()
    adapter = SansIO(connection, words.receive, words.events, words.to_send)
    adapter.set_handler(testing.Recorder())
    connection.close()
    adapter.flush()
    words.output = b"late"
    with pytest.raises(ngi_gevent.ConnectionClosed):
        adapter.flush()
