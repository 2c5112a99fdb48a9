"""Common mistakes with input that arrives in pieces: each is made on purpose, and each is found."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from ngi_gevent import adapters, blocking, generator, testing
from ngi_gevent.testing import check_chunking, check_work, converse, work


@pytest.fixture(autouse=True)
def little_work(request, monkeypatch):
    """Repeat conversations with fewer bytes, except in slow tests.  This finds the same mistakes."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(work, "REPEATED", 4 * 1024)


class Handler:
    def __init__(self, connection):
        connection.set_handler(self)


class Echo(Handler):
    def handle_input(self, connection, data):
        connection.write(data.upper())


class Lines(Handler):
    """Answers each line, without a mistake."""

    def __init__(self, connection):
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper() + b"\n")


class OneInputOneMessage(Handler):
    def handle_input(self, connection, data):
        connection.write(data.strip() + b"!\n")


class LosesTheRest(Handler):
    buffer = b""

    def handle_input(self, connection, data):
        self.buffer += data
        if b"\n" in self.buffer:
            line, _ = self.buffer.split(b"\n", 1)
            connection.write(line.upper() + b"\n")
            self.buffer = b""


class LeavesTheRest(Handler):
    """Checks the data after a record only when more arrives."""

    buffer = b""

    def handle_input(self, connection, data):
        self.buffer += data
        if b"\n" in self.buffer:
            line, self.buffer = self.buffer.split(b"\n", 1)
            connection.write(line.upper() + b"\n")


class SplitsCharacters(Handler):
    def handle_input(self, connection, data):
        connection.write(data.decode().upper().encode())


class ReplacesSplitCharacters(Handler):
    def handle_input(self, connection, data):
        connection.write(data.decode(errors="replace").upper().encode())


class SplitsLineEnds(Handler):
    r"""Searches each piece for ``\r\n``."""

    def handle_input(self, connection, data):
        connection.write(data.replace(b"\r\n", b"|"))


class RaisesAtTheEnd(Handler):
    open = False

    def handle_input(self, connection, data):
        self.open = data[-1:] != b"."

    def handle_close(self, connection, reason):
        if self.open:
            raise ValueError("unfinished")


class RaisesWhenReset(Handler):
    def handle_input(self, connection, data):
        connection.write(data)

    def handle_close(self, connection, reason):
        if isinstance(reason, OSError):
            raise reason


class NeedsThreePieces(Handler):
    """Makes its mistake only if the input is cut at no fewer than two certain places."""

    def __init__(self, connection):
        super().__init__(connection)
        self.pieces = []

    def handle_input(self, connection, data):
        self.pieces.append(data)
        seen = b"".join(self.pieces)
        if seen == b"abcdef" and {b"ab", b"abcd"} <= {b"".join(self.pieces[:n]) for n in range(7)}:
            connection.write(b"mistake")


class ClosesEarly(Handler):
    def handle_input(self, connection, data):
        if len(data) < 3:
            connection.close()


class CountsPieces(Handler):
    """Has a mistake only in its last answer, but not for the whole conversation in one piece."""

    def __init__(self, connection):
        super().__init__(connection)
        self.pieces = []

    def handle_input(self, connection, data):
        self.pieces.append(data)

    def handle_eof(self, connection):
        whole = b"".join(self.pieces) == b"abcdef"
        connection.write(b"done" if whole else b"%d" % len(self.pieces))
        connection.close()


MISTAKES = [
    (CountsPieces, b"abcdef", [b"a", b"b"]),
    (OneInputOneMessage, b"one\ntwo\n", [b"o", b"ne\ntwo\n"]),
    (OneInputOneMessage, [b"one\n", b"two\n"], [b"one\ntwo\n"]),
    (LosesTheRest, b"one\ntwo\n", [b"one\n", b"two\n"]),
    (LosesTheRest, [b"one\n", b"two\n"], [b"one\ntwo\n"]),
    (LeavesTheRest, [b"one\n", b"two\n"], [b"one\ntwo\n"]),
    (SplitsCharacters, "naïve".encode(), [b"na\xc3", b"\xafve"]),
    (ReplacesSplitCharacters, "naïve".encode(), [b"na\xc3", b"\xafve"]),
    (SplitsLineEnds, b"one\r\ntwo", [b"one\r", b"\ntwo"]),
    (RaisesAtTheEnd, b"one.", [b"o"]),
    (RaisesWhenReset, b"one", []),
    (NeedsThreePieces, b"abcdef", [b"ab", b"cd", b"ef"]),
    (ClosesEarly, b"abc", [b"a", b"bc"]),
]


def failure(server, conversation, **options):
    with pytest.raises(AssertionError) as caught:
        check_chunking(server, conversation, **options)
    return str(caught.value)


@pytest.mark.parametrize(("server", "conversation", "smallest"), MISTAKES)
def test_a_mistake_is_found_with_its_smallest_cut(server, conversation, smallest):
    assert f"Coming as\n    {smallest!r}\n" in failure(server, conversation)


class CopiesItsBuffer(Handler):
    def __init__(self, connection):
        super().__init__(connection)
        self.buffer = b""

    def handle_input(self, connection, data):
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            connection.write(line.upper())


class JoinsItsPieces(Handler):
    def __init__(self, connection):
        super().__init__(connection)
        self.pieces = []

    def handle_input(self, connection, data):
        self.pieces.append(data)
        line, end, rest = b"".join(self.pieces).partition(b"\n")
        if end:
            connection.write(line)
            self.pieces = [rest]


class LooksAtEachByteAgain(Handler):
    def __init__(self, connection):
        super().__init__(connection)
        self.buffer = bytearray()

    def handle_input(self, connection, data):
        self.buffer += data
        for at, byte in enumerate(self.buffer):
            if byte == 10:
                connection.write(self.buffer[:at])
                del self.buffer[: at + 1]
                break


class CopiesTheRestForEachRecord(Handler):
    buffer = b""

    def handle_input(self, connection, data):
        pieces = [self.buffer, data]
        self.buffer = b"".join(pieces) if self.buffer else data
        while b"\n" in self.buffer:
            line, self.buffer = self.buffer.split(b"\n", 1)
            connection.write(line.upper() + b"\n")


@blocking.server
def copies_what_it_has_read(input, output):
    buffer = b""
    while byte := input.read(1):
        buffer = buffer + byte


@blocking.server
def looks_at_each_line_again(input, output):
    lines = []
    for line in input:
        lines.append(line)
        for _ in lines:
            pass


LONG = b"x" * 400 + b"\n"

QUADRATIC = [
    (CopiesItsBuffer, LONG, "each byte that comes"),
    (JoinsItsPieces, LONG, "each byte that comes"),
    (LooksAtEachByteAgain, b"x" * 400, "each byte that comes"),
    (copies_what_it_has_read, LONG, "each byte that comes"),
    (looks_at_each_line_again, b"x" * 30 + b"\n", "each record costs more"),
    (CopiesTheRestForEachRecord, b"one\ntwo\n", "each record costs more"),
]


@pytest.mark.parametrize(
    ("server", "conversation", "message"),
    [
        pytest.param(*mistake, marks=pytest.mark.slow)
        if mistake[0] in (JoinsItsPieces, LooksAtEachByteAgain, copies_what_it_has_read)
        else mistake
        for mistake in QUADRATIC
    ]
    # The check runs again with the number of bytes that is used outside of these tests.
    + [pytest.param(*QUADRATIC[-1], marks=pytest.mark.slow)],
)
def test_quadratic_buffering_is_found_by_counting_work(server, conversation, message):
    assert failure(server, conversation).startswith(message)


@generator.handler
def generator_lines(connection):
    buffer = b""
    while True:
        data = yield
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            connection.write(line)


class Sized(Handler):
    def __init__(self, connection):
        adapters.Sized(connection).set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


@blocking.server
def blocking_lines(input, output):
    for line in input:
        if line.endswith(b"\n"):
            output.write(line.upper())


@pytest.mark.parametrize(
    ("server", "conversation"),
    [
        (Echo, b"hello"),
        (Echo, [b"hello", b"", b"there"]),
        pytest.param(Lines, b"one\ntwo\nthr", marks=pytest.mark.slow),
        pytest.param(Lines, [b"one\n", bytearray(b"two\n")], marks=pytest.mark.slow),
        pytest.param(Lines, LONG * 3, marks=pytest.mark.slow),
        (generator_lines, [b"one\n", b"two\n"]),
        pytest.param(Sized, b"\0\0\0\3one\xff\xff\xff\xff\0\0\0\0\0\0\0\3two", marks=pytest.mark.slow),
        (Sized, b"\0\0\1\x50" + b"x" * 336),
        pytest.param(blocking_lines, [b"one\n", b"two\n"], marks=pytest.mark.slow),
    ],
)
def test_a_correct_server_passes(server, conversation):
    check_chunking(server, conversation)


@pytest.mark.slow
def test_correct_buffers_pass_the_check_of_work():
    check_work(Lines, b"x" * 2000 + b"\n")
    check_work(Sized, b"\0\0\x08\0" + b"x" * 2048)
    check_work(Lines, b"some line of text\n")


def test_the_seed_is_reported_and_determines_the_cuts():
    class Rare(Handler):
        """Makes its mistake for only one of a seed's random cuts."""

        def __init__(self, connection):
            super().__init__(connection)
            self.pieces = []

        def handle_input(self, connection, data):
            self.pieces.append(data)
            sizes = [len(piece) for piece in self.pieces]
            if sum(sizes) == 12 and len(sizes) == 6:
                connection.write(b"mistake")

    assert "(seed 7)" in failure(Rare, b"x" * 12, seed=7)
    assert failure(Rare, b"x" * 12, seed=7) == failure(Rare, b"x" * 12, seed=7)
    assert failure(Rare, b"x" * 12, seed=7) != failure(Rare, b"x" * 12, seed=8)


def test_an_exception_in_the_server_is_the_cause_of_the_failure():
    with pytest.raises(AssertionError) as caught:
        check_chunking(SplitsCharacters, "naïve".encode())
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)
    with pytest.raises(AssertionError, match="however its input is cut") as caught:
        check_chunking(SplitsCharacters, b"\xff")
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


def test_a_server_that_keeps_state_fails_the_check():
    class Counts(Handler):
        count = 0

        def handle_input(self, connection, data):
            Counts.count += 1
            connection.write(b"%d" % Counts.count)

    assert failure(Counts, b"x").startswith("the server gives different answers to the same input, cut the same way")


class SharesItsBuffer(Handler):
    """Keeps a connection's data in the class."""

    buffer = bytearray()

    def handle_input(self, connection, data):
        self.buffer.extend(data)
        while b"\n" in self.buffer:
            name, _, rest = bytes(self.buffer).partition(b"\n")
            self.buffer[:] = rest
            connection.write(b"hello " + name + b"\n")


@pytest.mark.parametrize("conversation", [b"world\n", b"world\nall\n", [b"world\n", b"all\n"], b"w\n"])
def test_data_left_by_an_earlier_connection_is_reported_for_every_conversation(conversation):
    SharesItsBuffer.buffer.clear()
    assert failure(SharesItsBuffer, conversation).startswith("the server gives different answers to the same input")


def test_a_server_that_raises_once_fails_the_check():
    class RaisesOnce(Handler):
        connections = 0

        def handle_input(self, connection, data):
            RaisesOnce.connections += 1
            if RaisesOnce.connections == 1:
                raise ValueError("the first")

    assert "first ValueError('the first'), then Answer(" in failure(RaisesOnce, b"x")


class Forgot:
    """A server that sets no handler."""

    def __init__(self, connection):
        pass

    def handle_input(self, connection, data):
        connection.write(data)


@pytest.mark.parametrize("check", [check_chunking, check_work, lambda server, data: converse(server, [data])])
def test_a_server_that_sets_no_handler_fails_the_check(check):
    with pytest.raises(AssertionError, match=r"^the server set no handler"):
        check(Forgot, b"hello")


def test_a_server_that_only_greets_or_closes_needs_no_handler():
    assert converse(lambda connection: connection.write(b"welcome"), []) == (b"welcome", None)
    assert converse(lambda connection: connection.close(), [b"x"]) == (b"", "end of input")


@pytest.mark.parametrize("check", [check_chunking, check_work])
@pytest.mark.parametrize("conversation", [b"", [], [b""]])
def test_an_empty_conversation_is_refused(check, conversation):
    with pytest.raises(ValueError, match="conversation must not be empty"):
        check(Echo, b"".join(conversation) if check is check_work else conversation)


@pytest.mark.parametrize("conversation", ["text", [b"x", "text"], 5])
def test_a_conversation_must_be_bytes(conversation):
    with pytest.raises(TypeError):
        check_chunking(Echo, conversation)


# Generated tests.


def pasted(message):
    return message[message.index("from ngi_gevent.testing import") :]


@pytest.mark.parametrize(
    ("server", "conversation"),
    [
        *(mistake[:2] for mistake in MISTAKES),
        *(pytest.param(*mistake[:2], marks=pytest.mark.slow) for mistake in QUADRATIC),
    ],
)
def test_the_generated_test_fails_and_then_passes_with_a_correct_server(server, conversation):
    test = pasted(failure(server, conversation))
    names: dict = {}
    exec(test, names)
    with pytest.raises((AssertionError, UnicodeDecodeError, ValueError, OSError)):
        names["test_input_in_pieces"]()
    names[server.__name__] = Lines
    names["test_input_in_pieces"]()


@pytest.mark.slow
def test_the_generated_test_runs_where_it_is_pasted(tmp_path):
    message = failure(LosesTheRest, b"one\ntwo\n")
    (tmp_path / "test_pasted.py").write_text(pasted(message))
    here = Path(__file__)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_pasted.py"],
        env={"PYTHONPATH": f"{here.parent}:{here.parent.parent}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "1 failed" in result.stdout
    assert "assert Answer(d" in result.stdout


def test_a_server_that_cannot_be_imported_has_a_placeholder_in_the_generated_test():
    def local(connection):
        OneInputOneMessage(connection)

    assert "\nlocal = ...  # the server that was checked\n" in failure(local, b"one\n")
    assert "converse(local, [" in failure(local, b"one\n")
    for nameless in lambda connection: OneInputOneMessage(connection), functools.partial(OneInputOneMessage):
        test = pasted(failure(nameless, b"one\n"))
        with pytest.raises(TypeError, match=r"callable that takes a connection; got Ellipsis"):
            run_pasted(test)
        with pytest.raises(AssertionError, match=r"^$|assert "):
            run_pasted(test.replace("server = ...", "from test_chunking import OneInputOneMessage as server"))


def run_pasted(test):
    names: dict = {}
    exec(test, names)
    names["test_input_in_pieces"]()


def test_a_failed_check_of_work_generates_a_test():
    with pytest.raises(AssertionError) as caught:
        check_work(CopiesItsBuffer, LONG)
    with pytest.raises(AssertionError, match="each byte that comes"):
        run_pasted(pasted(str(caught.value)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_chunking(object(), b"x"), r"a server must be a callable that takes a connection; got <object"),
        (lambda: check_work(object(), b"x"), r"a server must be a callable that takes a connection; got <object"),
        (lambda: check_work(Echo, [b"x"]), r"conversation must be bytes; got \[b'x'\]"),
        (lambda: converse(Echo, b"abc"), r"pieces must be a list of bytes, such as \[b'abc'\]; got b'abc'"),
        (lambda: converse(Echo, "abc"), r"pieces must be a list of bytes"),
    ],
)
def test_an_invalid_server_or_conversation_is_refused_at_the_call(call, message):
    with pytest.raises(TypeError, match=message):
        call()


# Conversations.


def test_converse_returns_the_answer_and_the_reason_for_the_end():
    class Closes(Handler):
        def handle_input(self, connection, data):
            connection.write(data)
            if data == b"bye":
                connection.close()

    assert converse(Closes, [b"hello", b"there"]) == (b"hellothere", None)
    assert converse(Closes, [b"bye", b"more"]) == (b"bye", "end of input")


class AnswersAtTheEnd(Handler):
    """Answers once the client has finished, with the number of received bytes."""

    size = 0

    def handle_input(self, connection, data):
        connection.write(b".")
        self.size += len(data)

    def handle_eof(self, connection):
        connection.write(b"%d" % self.size)
        connection.close()


def test_converse_returns_the_answer_to_the_end_of_input():
    assert converse(AnswersAtTheEnd, [b"one", b"two"]) == (b"..6", None)
    assert converse(AnswersAtTheEnd, [b"one", b"two"], reset=True) == (b"..", None)


def test_the_answer_to_the_end_of_input_must_be_the_same_each_time():
    numbers = itertools.count()

    class Random(AnswersAtTheEnd):
        def handle_input(self, connection, data):
            pass

        def handle_eof(self, connection):
            connection.write(b"%d" % next(numbers))
            connection.close()

    assert "different answers to the same input" in failure(Random, b"one\n")


def test_a_server_that_stays_open_after_the_end_of_input_is_stopped():
    reasons = []

    class Waits(Handler):
        def handle_input(self, connection, data):
            connection.write(data)

        def handle_eof(self, connection):
            pass

        def handle_close(self, connection, reason):
            reasons.append(reason)

    assert converse(Waits, [b"one"]) == (b"one", None)
    assert reasons == ["stopped"]


def test_converse_runs_greenlets_and_raises_their_exceptions():
    @blocking.server
    def fails(input, output):
        output.write(input.readline())
        gevent.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        converse(fails, [b"one", b"\n"])


def test_converse_leaves_nothing_open():
    with testing.nothing_left(testing.Implementation()):
        converse(blocking_lines, [b"one\n"])
