"""Adapters of records: delimiters, lengths, sizes that the handler chooses, text, and changes of the protocol."""

from __future__ import annotations

import struct
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngi_gevent import LimitExceeded, adapters, testing
from ngi_gevent.adapters import delimited


def over(make, **options):
    connection = testing.Connection(testing.Recorder())
    adapter = make(connection, **options)
    handler = testing.Recorder()
    adapter.set_handler(handler)
    return connection, adapter, handler


def feed(connection, data, size):
    for start in range(0, len(data), size):
        connection.test_input(data[start : start + size])


@given(st.lists(st.binary(max_size=8).filter(lambda r: b"\r" not in r)), st.integers(1, 9), st.booleans())
def test_a_long_delimiter_is_found_however_it_is_cut(records, size, strip):
    connection, _, handler = over(adapters.Delimited, delimiter=b"\r\n\r", strip=strip)
    feed(connection, b"".join(record + b"\r\n\r" for record in records) + b"unfinished\r\n", size)
    assert handler.chunks == [record if strip else record + b"\r\n\r" for record in records]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_with_crlf_lines_can_end_in_either_way(size):
    connection, _, handler = over(adapters.Lines, crlf=True, max_line=3)
    feed(connection, b"one\r\ntwo\n\r\n\r\r\n123\r", size)
    assert handler.chunks == [b"one", b"two", b"", b"\r"]
    assert handler.closed is None
    connection.test_input(b"4")
    assert isinstance(handler.closed, LimitExceeded)


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("format", ["B", ">H", "<I", "!Q"])
def test_lengths_can_have_any_format(format, include, size):
    connection, adapter, handler = over(adapters.LengthPrefixed, format=format, include_length=include, max_size=5)
    adapter.write(b"one")
    adapter.writelines([b"", b"three"])
    sent = connection.peer._handler.data
    width = struct.calcsize(format)
    assert sent.startswith(struct.pack(format, 3 + include * width) + b"one")
    feed(connection, sent + struct.pack(format, 6 + include * width), size)
    assert handler.chunks == [b"one", b"", b"three"]
    assert isinstance(handler.closed, LimitExceeded)


def test_a_length_shorter_than_itself_counts_as_the_peers_mistake(caplog):
    connection, _, handler = over(adapters.LengthPrefixed, format=">H", include_length=True)
    connection.test_input(b"\0\2\0\1")
    assert (handler.chunks, type(handler.closed)) == ([b""], ValueError)
    assert "1 bytes" in str(handler.closed)
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "options", "error", "named"),
    [
        (adapters.Delimited, {"delimiter": b""}, ValueError, "delimiter"),
        (adapters.Delimited, {"delimiter": "\n"}, TypeError, "delimiter"),
        (adapters.Delimited, {"delimiter": b"\n", "strip": 1}, TypeError, "strip"),
        (adapters.Lines, {"crlf": 1}, TypeError, "crlf"),
        *[
            (adapters.LengthPrefixed, {"format": it}, ValueError, "format")
            for it in ("", "HH", ">i", "d", "2s", "?", "é")
        ],
        (adapters.LengthPrefixed, {"format": 4}, TypeError, "format"),
        (adapters.LengthPrefixed, {"format": "B", "include_length": 1}, TypeError, "include_length"),
        (adapters.Text, {"encoding": "utf-16"}, ValueError, "encoding"),
        (adapters.Text, {"encoding": "hex"}, LookupError, "hex"),
        (adapters.Text, {"encoding": "nonesuch"}, LookupError, "nonesuch"),
        (adapters.Text, {"errors": "nonesuch"}, LookupError, "nonesuch"),
        (adapters.Text, {"errors": None}, TypeError, "errors"),
    ],
)
def test_bad_options_are_refused_at_the_call(make, options, error, named):
    with pytest.raises(error, match=named):
        make(testing.Connection(testing.Recorder()), **options)


def test_a_record_that_is_too_long_for_its_length_field_is_refused():
    connection = testing.Connection(testing.Recorder())
    adapters.LengthPrefixed(connection, "B").write(bytes(255))
    for include, size in (False, 256), (True, 255):
        with pytest.raises(ValueError, match=f"got one of {size}"):
            adapters.LengthPrefixed(connection, "B", include_length=include).write(bytes(size))


class Bodies(testing.Recorder):
    """A handler that receives lines, each with the number of bytes that follow."""

    def __init__(self, connection):
        super().__init__()
        self.lines = adapters.Lines(connection)
        self.lines.set_handler(self)
        self.in_body = False

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        self.in_body = not self.in_body
        if self.in_body:
            connection.exactly(int(data))
        else:
            connection.write(data + b";")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_exactly_gives_as_many_bytes_as_the_handler_requests(size):
    connection = testing.Connection(testing.Recorder())
    handler = Bodies(connection)
    feed(connection, b"3\na\nb0\n4\n\n\n\n\n0\n5\n12345", size)
    assert handler.chunks == [b"3", b"a\nb", b"0", b"", b"4", b"\n\n\n\n", b"0", b"", b"5", b"12345"]


def test_exactly_does_not_depend_on_cuts():
    testing.check_chunking(Bodies, b"3\na\nb0\n4\n\n\n\n\n400\n" + b"x" * 400)


def test_exactly_checks_its_size_and_includes_input_that_has_arrived():
    connection, lines, handler = over(adapters.Lines)
    for error, size in (ValueError, -1), (ValueError, adapters.MAX_SIZE + 1), (TypeError, "1"):
        with pytest.raises(error, match="size"):
            lines.exactly(size)
    connection.test_input(b"123")
    lines.exactly(2)
    connection.test_input(b"\n")
    assert handler.chunks == [b"12", b"3"]


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (adapters.Lines, {"crlf": True, "max_line": 3}),
        (adapters.Lines, {"max_line": 4}),
        (adapters.Delimited, {"delimiter": b"\r\n", "strip": False, "max_size": 3}),
    ],
)
def test_a_record_that_is_too_long_is_reported_after_the_records_before_it(make, options, size):
    """The record is not too long if the handler requests its bytes."""
    for asks in False, True:
        connection, adapter, handler = over(make, **options)
        if asks:
            adapter.set_handler(Asking(handler, b"two", 6))
        feed(connection, b"one\r\ntwo\r\nlonger\r\nsix\r\n", size)
        stripped = [record.rstrip(b"\r\n") for record in handler.chunks]
        assert stripped == ([b"one", b"two", b"longer", b"", b"six"] if asks else [b"one", b"two"])
        assert isinstance(handler.closed, type(None) if asks else LimitExceeded)


class Asking:
    """A handler that records its input, and requests *size* bytes after *line*."""

    def __init__(self, recorder, line, size):
        self.recorder, self.line, self.size = recorder, line, size

    def handle_input(self, connection, data):
        self.recorder.handle_input(connection, data)
        if data.startswith(self.line):
            connection.exactly(self.size)


def test_one_of_many_records_costs_no_python_code_in_the_adapter():
    connection, _, handler = over(adapters.Lines, max_line=100, crlf=True)
    piece = b"line\r\n" * 5000
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename == delimited.__file__

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        connection.test_input(piece)
    finally:
        sys.setprofile(before)
    assert len(handler.chunks) == 5000
    assert calls < 500


# Changes of the protocol.


class ChangesOver(testing.Recorder):
    """A handler for lines up to ``go``.  After that, *following* is the handler of the connection below."""

    def __init__(self, stage, connection=None):
        super().__init__()
        self.following = testing.Recorder()
        if connection is not None:
            self.connected(connection)

    def connected(self, connection):
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        if data == b"go":
            self.old = connection
            below, rest = connection.detach()
            below.set_handler(self.following)
            if rest:
                self.following.handle_input(below, rest)


@given(st.integers(1, 20))
def test_undelivered_input_is_returned_once(size):
    connection = testing.Connection(testing.Recorder())
    handler = ChangesOver(None, connection)
    feed(connection, b"one\ngo\ntwo\nthree", size)
    assert (handler.chunks, handler.following.data) == ([b"one", b"go"], b"two\nthree")


def test_a_detached_adapter_is_false_and_raises():
    connection, lines, handler = over(adapters.Lines)
    connection.test_input(b"begun")
    assert lines.detach() == (connection, b"begun")
    assert not lines
    assert "detached" in repr(lines)
    for use in (
        lambda: lines.write(b"x"),
        lambda: lines.set_handler(handler),
        lambda: lines.exactly(1),
        lines.detach,
        lines.close,
        lambda: lines.peer_address,
    ):
        with pytest.raises(RuntimeError, match="detached"):
            use()
    connection.close()
    assert handler.closed is None


@pytest.mark.parametrize("data", [b"line\n", b"lin"])
def test_input_for_a_detached_adapter_is_logged_as_an_error(data, caplog):
    connection, lines, _ = over(adapters.Lines)
    lines.detach()
    connection.test_input(data)
    assert not connection
    assert "call set_handler of the connection" in str(caplog.records[0].exc_info[1])


def test_sized_after_detached_lines_gets_the_rest():
    connection, lines, _ = over(adapters.Lines)
    after = testing.Recorder()

    class Handler:
        def handle_input(self, connection, line):
            below, rest = connection.detach()
            sized = adapters.Sized(below)
            sized.set_handler(after)
            sized.handle_input(below, rest)

    lines.set_handler(Handler())
    connection.test_input(b"sized\n\0\0\0\1a\0\0\0\2b")
    connection.test_input(b"c\0\0\0\0")
    assert after.chunks == [b"a", b"bc", b""]


def test_stacked_adapters_are_detached_one_at_a_time():
    connection = testing.Connection(testing.Recorder())
    lines = adapters.Lines(connection)
    text = adapters.Text(lines)
    rests = []

    class Handler:
        def handle_input(self, it, data):
            below, rest = it.detach()
            rests.append((below is lines, rest))
            rests.append(below.detach())
            connection.set_handler(testing.Recorder())

    text.set_handler(Handler())
    connection.test_input(b"one\ntwo\n")
    assert rests == [(True, b""), (connection, b"two\n")]


# Subclasses of adapters of records.


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(("kind", "data"), [(adapters.Lines, b"3\n10\n"), (adapters.Sized, b"\0\0\0\0013\0\0\0\00210")])
def test_a_subclass_gets_records_and_passes_them_on(kind, data, size):
    class Numbers(kind):
        def handle_input(self, connection, data):
            super().handle_input(connection, int(data))

    connection, adapter, handler = over(Numbers)
    handler.handle_input = lambda connection, data: numbers.append((connection, data))
    numbers = []
    feed(connection, data, size)
    assert numbers == [(adapter, 3), (adapter, 10)]


# Text.


def text_over(below=lambda connection: connection, **options):
    connection = testing.Connection(testing.Recorder())
    adapter = adapters.Text(below(connection), **options)
    texts = []

    class Handler(testing.Recorder):
        def handle_input(self, connection, data):
            texts.append(data)

    handler = Handler()
    adapter.set_handler(handler)
    return connection, adapter, handler, texts


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 5), st.sampled_from(["utf-8", "utf-16-le"]))
def test_text_is_decoded_however_it_is_cut(text, size, encoding):
    connection, _, _, texts = text_over(encoding=encoding)
    feed(connection, text.encode(encoding), size)
    assert "".join(texts) == text
    assert "" not in texts


def test_text_over_lines_comes_line_by_line(caplog):
    connection, _, handler, texts = text_over(adapters.Lines)
    feed(connection, "é\n\n€\n".encode() + b"\xc3\n\xa9\n", 1)
    assert texts == ["é", "", "€"]
    assert isinstance(handler.closed, UnicodeDecodeError)
    assert not caplog.records


def test_print_can_write_to_a_text_adapter():
    connection, text, handler, _ = text_over()
    print("naïve", 1, file=text, flush=True)
    text.writelines(["a", "b\n"])
    try:
        raise ValueError("é")
    except ValueError:
        traceback.print_exc(file=text)
    sent = connection.peer._handler.data.decode()
    assert sent.startswith("naïve 1\nab\nTraceback")
    assert sent.endswith("ValueError: é\n")
    with pytest.raises(TypeError, match="data must be a str"):
        text.write(b"bytes")
    with pytest.raises(UnicodeEncodeError):
        text.write("\ud800")


def test_an_incomplete_character_is_returned_by_detach():
    connection, text, _, texts = text_over(errors="replace")
    connection.test_input(b"a\xff\xe2\x82")
    assert texts == ["a\ufffd"]
    assert text.detach() == (connection, b"\xe2\x82")


def test_check_chunking_can_leave_the_parts_of_a_conversation_separate():
    class Waits(testing.Recorder):
        """A handler that raises if the client does not wait for the answer to its first line."""

        def handle_input(self, connection, data):
            first = b"\n" not in self.data
            super().handle_input(connection, data)
            if first and b"\n" in data:
                assert data.endswith(b"\n")
                connection.write(b"go\n")

    testing.check_chunking(Waits, [b"hello\n", b"rest"], join=False)
    with pytest.raises(AssertionError):
        testing.check_chunking(Waits, [b"hello\n", b"rest"])
    with pytest.raises(TypeError, match="join"):
        testing.check_chunking(Waits, b"x", join=1)
