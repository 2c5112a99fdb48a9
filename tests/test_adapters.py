"""Adapters: the base class, which passes everything through, and the two that cut the stream into records."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc

import gevent
import pytest
from iterables import Unbegun
from stages import Witness

from ngi_gevent import ConnectionClosed, LimitExceeded, adapters, blocking, generator, testing


class Handler(testing.Recorder):
    def __init__(self):
        super().__init__()
        self.connections = set()

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        self.connections.add(connection)

    def handle_close(self, connection, reason):
        super().handle_close(connection, reason)
        self.connections.add(connection)

    def handle_exception(self, connection, exception):
        super().handle_exception(connection, exception)
        self.connections.add(connection)


def adapted():
    connection = testing.Connection(testing.Recorder(), "here", "there")
    return adapters.Base(connection), connection


def test_input_and_output_pass_through_the_base_adapter():
    adapter, connection = adapted()
    handler = Handler()
    adapter.set_handler(handler)
    connection.test_input(b"in")
    adapter.write(b"out ")
    adapter.writelines([b"lines", 1])
    connection.test_close("over")
    peer = connection.peer._handler
    assert peer.data == b"out lines"
    assert (handler.data, handler.closed, len(handler.exceptions)) == (b"in", "over", 1)
    assert handler.connections == {adapter}


def test_the_base_adapter_has_all_attributes_of_a_connection():
    implementation = testing.Implementation()
    listener = implementation.listener("address", testing.Recorder)
    client = testing.Recorder()
    listener.connect(client, client_address="client")
    (connection,) = listener.connections()
    adapter = adapters.Base(connection)
    assert (adapter.control, adapter.peer_address, adapter.local_address) == (listener, "client", "address")
    assert adapter
    assert repr(connection) in repr(adapter)
    told = []
    adapter.when_closed(lambda: told.append(1))
    adapter.abort()
    assert not adapter
    assert told == [1]
    assert isinstance(client.closed, ConnectionResetError)


def test_an_adapters_close_closes_its_connection():
    adapter, connection = adapted()
    adapter.write(b"bye")
    adapter.close()
    assert not connection
    assert (connection.peer._handler.data, connection.peer._handler.closed) == (b"bye", "end of input")


def test_an_adapters_handler_needs_no_optional_method(caplog):
    class Minimal:
        def handle_input(self, connection, data):
            pass

    adapter, connection = adapted()
    adapter.set_handler(Minimal())
    connection.test_close("over")
    assert not caplog.records
    adapter, connection = adapted()
    adapter.set_handler(Minimal())
    adapter.writelines([b"x", 1])
    assert not connection
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]


def test_a_later_handler_replaces_the_first():
    adapter, connection = adapted()
    first, second = Handler(), Handler()
    adapter.set_handler(first)
    connection.test_input(b"one")
    with pytest.warns(DeprecationWarning, match="set_handler"):
        adapter.setHandler(second)
    connection.test_input(b"two")
    assert (first.data, second.data) == (b"one", b"two")
    with pytest.raises(TypeError):
        adapter.set_handler(None)


class Old:
    """A connection as programs for NGI 1 implement it: with ``setHandler``, and without ``set_handler``."""

    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        if name == "set_handler":
            raise AttributeError(name)
        return getattr(self.connection, name)

    def setHandler(self, handler):  # noqa: N802 (NGI 1's spelling)
        self.handler = handler
        self.connection.set_handler(self)

    def handle_input(self, connection, data):
        self.handler.handle_input(self, data.upper())


def test_connections_with_only_ngi_1s_set_handler_work_and_warn():
    @generator.handler(connection_adapter=Old)
    def answer(connection):
        connection.write((yield))

    def read(connection):
        return blocking.open(Old(connection))[1].read(5)

    handler, peer = Handler(), testing.Recorder()
    for use in (
        lambda connection: adapters.Lines(Old(connection)).set_handler(handler),
        answer,
        lambda connection: gevent.spawn(read, connection).get(timeout=10),
    ):
        connection = testing.Connection(peer)
        connection.test_input(b"hello\n")
        with pytest.warns(DeprecationWarning, match="name the method of Old set_handler"):
            used = use(connection)
    assert (handler.data, peer.data, used) == (b"HELLO", b"HELLO\n", b"HELLO")
    with pytest.raises(AttributeError, match="set_handler"):
        adapters.Base(object()).set_handler(handler)


def over(adapter_class, **limits):
    """Return an adapter over a connection, with a recorder as its handler, and the recorder of the peer."""
    connection = testing.Connection(testing.Recorder())
    adapter = adapter_class(connection, **limits)
    handler = Handler()
    adapter.set_handler(handler)
    return connection, adapter, handler


def sized(*records):
    return b"".join(b"\xff\xff\xff\xff" if r is None else struct.pack(">I", len(r)) + r for r in records)


def feed(connection, data, size):
    for start in range(0, len(data), size):
        connection.test_input(data[start : start + size])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_delivered_without_their_ends_however_input_is_cut(size):
    connection, adapter, handler = over(adapters.Lines)
    feed(connection, b"one\n\ntwo\r\nthree\n\n\nunfinished", size)
    assert handler.chunks == [b"one", b"", b"two\r", b"three", b"", b""]
    connection.test_close("over")
    assert handler.chunks[-1] == b""
    assert handler.closed == "over"
    assert handler.connections == {adapter}


def test_lines_writes_output_unchanged():
    connection, adapter, handler = over(adapters.Lines)
    adapter.write(b"as it is")
    adapter.writelines([b" and", b" this\n"])
    assert connection.peer._handler.data == b"as it is and this\n"


def test_an_adapter_that_ends_the_connection_notifies_all_adapters():
    class Closing(adapters.Base):
        def fail(self, reason):
            if self:
                self.write(b"trailer")
            super().fail(reason)

        def handle_close(self, connection, reason):
            told.append((self, connection, reason))
            super().handle_close(connection, reason)

    told = []
    connection = testing.Connection(testing.Recorder())
    lowest = Closing(connection)
    middle = adapters.Lines(lowest, max_line=3)
    top = Closing(middle)
    handler = Handler()
    top.set_handler(handler)
    connection.test_input(b"long")
    assert told == [(lowest, connection, handler.closed), (top, middle, handler.closed)]
    assert handler.connections == {top}
    assert connection.peer._handler.data == b"trailer"
    middle.fail(ValueError())
    assert len(told) == 2


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_line_that_is_too_long_ends_the_connection(size, caplog):
    connection, adapter, handler = over(adapters.Lines, max_line=10)
    feed(connection, b"0123456789\n01234567890\nnever\n", size)
    assert handler.chunks == [b"0123456789"]
    assert isinstance(handler.closed, LimitExceeded)
    assert "max_line" in str(handler.closed)
    assert not connection
    assert connection.peer._handler.closed == "end of input"
    assert not caplog.records


def test_a_peer_that_never_sends_a_newline_uses_no_memory():
    connection, adapter, handler = over(adapters.Lines)
    for _ in range(100):
        connection.test_input(b"x" * 65536)
    assert isinstance(handler.closed, LimitExceeded)
    assert not adapter._begun


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
def test_records_are_delivered_however_input_is_cut(size):
    connection, adapter, handler = over(adapters.Sized)
    feed(connection, sized(b"one", None, b"", b"x", None, None, b"four" * 100) + sized(b"unfinished")[:-1], size)
    assert handler.chunks == [b"one", b"", b"x", b"four" * 100]
    connection.test_close("over")
    assert len(handler.chunks) == 4
    assert handler.connections == {adapter}


@pytest.mark.parametrize("cut", range(12))
def test_a_record_can_be_cut_at_any_byte(cut):
    connection, adapter, handler = over(adapters.Sized)
    data = sized(b"12345678")
    connection.test_input(data[:cut])
    assert handler.chunks == []
    connection.test_input(data[cut:])
    assert handler.chunks == [b"12345678"]


def test_sized_records_are_written_with_their_size():
    connection, adapter, handler = over(adapters.Sized)
    adapter.write(b"one")
    adapter.write(None)
    adapter.write(bytearray())
    adapter.writelines([b"two", None, memoryview(b"three")])
    assert connection.peer._handler.data == sized(b"one", None, b"", b"two", None, b"three")
    for wrong in "text", 5:
        with pytest.raises(TypeError):
            adapter.write(wrong)
    with pytest.raises(TypeError, match="writelines"):
        adapter.writelines(b"bytes")
    adapter.writelines([5])
    assert [type(error) for error in handler.exceptions] == [TypeError]


@pytest.mark.parametrize("extra", [0, 1])
def test_a_record_can_be_as_long_as_max_size_but_not_longer(extra, caplog):
    connection, adapter, handler = over(adapters.Sized, max_size=10)
    connection.test_input(sized(b"ok") + sized(b"x" * (10 + extra)) + sized(b"after"))
    if extra:
        assert handler.chunks == [b"ok"]
        assert isinstance(handler.closed, LimitExceeded)
        assert "max_size" in str(handler.closed)
        assert not connection
    else:
        assert handler.chunks == [b"ok", b"x" * 10, b"after"]
    assert not caplog.records


def test_a_record_of_4_gigabytes_is_refused_at_its_header():
    connection, adapter, handler = over(adapters.Sized)
    connection.test_input(struct.pack(">I", 2**32 - 2))
    assert isinstance(handler.closed, LimitExceeded)


@pytest.mark.parametrize(
    ("kind", "data"), [(adapters.Lines, b"one\ntwo\nthree\n"), (adapters.Sized, sized(b"one", b"two", b"three"))]
)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_no_record_is_delivered_after_the_handler_ends_the_connection(kind, data, end):
    class Leave(Handler):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            getattr(connection, end)()

    connection, adapter, _ = over(kind)
    handler = Leave()
    adapter.set_handler(handler)
    connection.test_input(data)
    connection.test_input(data)
    assert (handler.chunks, handler.closed) == ([b"one"], None)


@pytest.mark.parametrize(
    ("kind", "data"), [(adapters.Lines, b"one\ntwo\nthree\n"), (adapters.Sized, sized(b"one", b"two", b"three"))]
)
def test_a_new_handler_gets_the_remaining_records(kind, data):
    class Change(Handler):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.set_handler(second)

    connection, adapter, _ = over(kind)
    first, second = Change(), Handler()
    adapter.set_handler(first)
    connection.test_input(data)
    assert (first.chunks, second.chunks) == ([b"one"], [b"two", b"three"])


def test_an_adapter_can_wrap_another():
    """The test has lines within records: a line may span several records."""
    connection = testing.Connection(testing.Recorder())
    records = adapters.Sized(connection)
    lines = adapters.Lines(records)
    handler = Handler()
    lines.set_handler(handler)
    connection.test_input(sized(b"one\ntw", None, b"o\nthree"))
    lines.write(b"answer\n")
    lines.close()
    assert handler.chunks == [b"one", b"two"]
    assert handler.connections == {lines}
    assert connection.peer._handler.data == sized(b"answer\n")
    assert not connection


def test_a_record_too_long_for_its_length_field_is_refused_at_the_call():
    connection = testing.Connection(testing.Recorder())
    with pytest.raises(ValueError, match="4294967295"):
        adapters.Sized(connection).write(bytes(0xFFFFFFFF))  # the kernel allocates these pages only on access
    assert connection.peer._handler.data == b""


@pytest.mark.parametrize(("kind", "limit"), [(adapters.Lines, "max_line"), (adapters.Sized, "max_size")])
def test_a_limit_must_be_a_number(kind, limit):
    with pytest.raises(ValueError, match=limit):
        kind(testing.Connection(testing.Recorder()), **{limit: -1})
    with pytest.raises(TypeError, match=limit):
        kind(testing.Connection(testing.Recorder()), **{limit: "10"})


def test_a_generator_can_write_through_an_adapter():
    @adapters.Lines.handler
    def greet(connection):
        connection.write(b"name?\n")
        name = yield
        connection.write(b"hello " + name + b"\n")

    connection = testing.Connection(testing.Recorder())
    greet(connection)
    feed(connection, b"world\nmore\n", 1)
    assert connection.peer._handler.data == b"name?\nhello world\n"
    assert not connection


class Answer(Witness):
    """Answers each record with 2,000 bytes, and stores how much output was pending."""

    most_pending = 0

    def __init__(self, stage, connection=None):
        super().__init__(stage, connection)
        self.answered = 0

    def handle_input(self, connection, data):
        connection.write(bytes(2000))
        self.answered += 1
        self.most_pending = max(self.most_pending, self.stage.waiting(self.connection))


def over_lines(witness, connection):
    adapters.Lines(connection).set_handler(witness)


def over_sized(witness, connection):
    class Unframed(adapters.Sized):
        def write(self, data):
            self.connection.write(data)

    Unframed(connection).set_handler(witness)


def over_sized_lines(witness, connection):
    """Wrap a connection in two adapters.  The handler sees only the upper one, for the lines within records."""
    adapters.Lines(adapters.Base(connection)).set_handler(witness)


@pytest.mark.parametrize(
    ("adapt", "record"), [(over_lines, b"\n"), (over_sized, bytes(4)), (over_sized_lines, b"a line\n")]
)
def test_the_answers_to_many_records_wait_until_the_peer_reads(socket_stage, adapt, record):
    """The answers to 12,000 requests in one write are 24 MB, of which little is pending at a time."""

    class Server(Answer):
        def connected(self, connection):
            self.meet(connection)
            adapt(self, connection)

    count = 12_000
    peer = socket_stage.peer(socket_stage.listen(Server, output_limit=1_000_000))
    peer.send(record * count)
    peer.read()
    socket_stage.until(lambda: peer.size == count * 2000 or peer.ended)
    assert peer.ended is None
    served = socket_stage.served[0]
    socket_stage.until(lambda: served.answered == count)  # a callback may not have returned
    assert served.most_pending < 200_000


def test_the_records_of_a_peer_wait_while_it_does_not_read(tcp):
    """When the peer has gone, its remaining records are delivered, like all input that arrives before the end."""

    class Server(Answer):
        def connected(self, connection):
            self.meet(connection)
            over_lines(self, connection)

        def handle_input(self, connection, data):
            with contextlib.suppress(ConnectionClosed):
                super().handle_input(connection, data)
            self.stage.happened()

    peer = tcp.peer(tcp.listen(Server))
    peer.send(b"\n" * 65536)
    tcp.until(lambda: tcp.served and tcp.served[0].connection and tcp.served[0].connection._output.is_pausing)
    served = tcp.served[0]
    before = served.answered
    assert 0 < before < 32768
    peer.reset()
    tcp.until(lambda: served.closed)
    assert isinstance(served.closed, OSError)
    assert served.most_pending < 200_000


@pytest.mark.parametrize(("adapt", "record"), [(over_lines, b"hello\n"), (over_sized, sized(b"hello"))])
def test_input_after_a_cut_record_is_not_delivered_as_records(tcp, adapt, record):
    """A write fails in the middle of a record, because the peer has gone.  The rest of the input has no record
    boundary.
    """

    class Server(Witness):
        def connected(self, connection):
            self.meet(connection)
            adapt(self, connection)

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            while connection:
                connection.write(b"x")
                gevent.sleep(0.001)
            connection.write(b"in vain")

    peer = tcp.peer(tcp.listen(Server))
    peer.send(record + sized(record + record)[:-1])
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    peer.send(record)
    tcp.until(lambda: peer.sent == 4 * len(record) + 3)
    peer.reset()
    tcp.until(lambda: tcp.served[0].closed)
    assert tcp.served[0].chunks[0] == b"hello"
    assert len(tcp.served[0].chunks) == 1
    assert isinstance(tcp.served[0].closed, OSError)


def test_pieces_of_an_unfinished_record_use_no_more_memory_than_their_bytes():
    """The record arrives as 40,000 bytes, two at a time.  A list of them would take seventeen times as much memory."""
    for make, begin in (adapters.Lines, b""), (adapters.Sized, struct.pack(">I", 2_000_000)):
        connection, adapter, handler = over(make)
        connection.test_input(begin + b"x")
        tracemalloc.start()
        try:
            for number in range(20_000):
                adapter.handle_input(None, b"%c%c" % (65 + number % 26, 66 + number % 20))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 80_000


@pytest.mark.slow
def test_splitting_takes_linear_time():
    """For 20 times the data in small pieces, splitting must not take 400 times as long."""

    def seconds(work, *arguments):
        began = time.process_time()
        work(*arguments)
        return time.process_time() - began

    def one_line(size):
        _, adapter, handler = over(adapters.Lines, max_line=size)
        for _ in range(size // 1024):
            adapter.handle_input(None, b"x" * 1024)
        adapter.handle_input(None, b"\n")
        assert len(handler.chunks[0]) == size

    def many_lines(count):
        _, adapter, handler = over(adapters.Lines)
        adapter.handle_input(None, b"a line\n" * count)
        assert len(handler.chunks) == count

    def one_record(size):
        _, adapter, handler = over(adapters.Sized, max_size=size)
        data = sized(b"x" * size)
        for start in range(0, len(data), 1024):
            adapter.handle_input(None, data[start : start + 1024])
        assert len(handler.chunks[0]) == size

    assert seconds(one_line, 10 * 1024 * 1024) < 2
    assert seconds(many_lines, 1_000_000) < 5
    assert seconds(one_record, 10 * 1024 * 1024) < 2


def test_word_count_runs_on_every_implementation(stage):
    @adapters.Sized.handler
    def word_count(connection):
        while True:
            text = yield
            connection.write(b"%d %d" % (len(text.splitlines()), len(text.split())))

    class Client(Witness):
        def connected(self, connection):
            super().connected(connection)
            self.sized = adapters.Sized(connection)
            self.sized.set_handler(self)

    client = stage.client(stage.listen(word_count), Client)
    client.sized.write(b"Hello out\nthere")
    client.sized.write(None)
    client.sized.write(b"")
    stage.until(lambda: len(client.chunks) == 2)
    assert client.chunks == [b"2 3", b"0 0"]


def test_a_discarded_iterable_of_sized_records_is_closed_even_if_it_never_started():
    closed = []
    connection = testing.Connection(testing.Recorder())
    connection.peer.pause_reading()
    adapters.Sized(connection).writelines(Unbegun(closed))
    connection.abort()
    assert closed
