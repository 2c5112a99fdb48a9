"""A check that the answers of a server do not depend on how TCP splits its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from ngi_gevent.core.checks import check_flag, check_server
from ngi_gevent.testing.conversation import Answer, Conversation, NotRead, converse
from ngi_gevent.testing.pasting import name_of, pasted
from ngi_gevent.testing.work import check_work

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IServer

__all__ = ["check_chunking"]

#: Random cuts to try.
RANDOM_CUTS = 50


def check_chunking(server: IServer, conversation: bytes | Sequence[bytes], *, seed: int = 0, join: bool = True) -> None:
    """Check that *server* gives the same answer wherever its input is cut, and raises no exception wherever its input
    ends.

    The server receives the conversation as it is, in one piece, cut at each place, a byte at a time, and cut at random
    places.  Then it receives each beginning of the conversation.  After each beginning, the client finishes, or the
    connection is reset.  The work of the server must not grow with the square of its input: see :func:`check_work`.

    The server runs in memory, on the calling greenlet.  The time grows with the square of the length of the
    conversation, so use a few hundred bytes.  Connections must not share state.

    :param conversation: the bytes that a client sends, or a list of bytes if the client waits for answers in between.
    :param seed: the seed of the random places.
    :param join: whether a piece can hold the end of one message of the list and the beginning of the next.  Pass False
        for protocols whose clients must wait for the answer, for example before TLS begins.  The work is not checked
        then.  The default is True.
    :raises TypeError: an argument has the wrong type.
    :raises ValueError: the conversation is empty.
    :raises AssertionError: a cut makes a difference, and the message has the smallest such cut, as a test to paste; or
        the server gives a connection no handler.
    """
    __tracebackhide__ = True
    chunking = _Chunking(server, conversation, seed, join)
    chunking.check_whole()
    chunking.check_cuts()
    chunking.check_ends()
    chunking.check_nothing_is_remembered()
    chunking.check_work()


class _Chunking:
    """One check.  A cut is a sorted list of places in the input, without its beginning and end."""

    def __init__(self, server: IServer, conversation: bytes | Sequence[bytes], seed: int, join: bool) -> None:
        check_server(server)
        check_flag("join", join)
        messages = [conversation] if isinstance(conversation, (bytes, bytearray, memoryview)) else list(conversation)
        if not all(isinstance(message, (bytes, bytearray, memoryview)) for message in messages):
            raise TypeError(f"conversation must be bytes, or a list of bytes; got {conversation!r:.100}")
        self._server = server
        self._seed = seed
        self._input = b"".join(map(bytes, messages))
        if not self._input:
            raise ValueError("conversation must not be empty; pass the bytes that a client sends")
        ends = [sum(map(len, messages[:count])) for count in range(1, len(messages))]
        #: The places where the client waits for the answer.
        self._waits = sorted(set(ends) - {0, len(self._input)})
        #: The places where the client waits, if each cut includes them.
        self._kept = [] if join else self._waits
        #: The answers, by the cut, the end of the input, and whether the connection was reset.
        self._answers: dict[tuple[tuple[int, ...], int | None, bool], Answer | BaseException] = {}

    def check_whole(self) -> None:
        """Check that the uncut conversation raises nothing, and has the same answer twice."""
        __tracebackhide__ = True
        expected = self._answer(self._waits)
        if isinstance(expected, BaseException):
            self._fail("the server raises, however its input is cut", self._waits)
        self._answer(self._waits)
        self._expected = expected

    def check_cuts(self) -> None:
        """Check the whole conversation, cut in many ways."""
        __tracebackhide__ = True
        for cut in self._cuts():
            if not _same(self._answer(cut), self._expected):
                self._fail("the answer depends on how the input is cut", self._smallest(cut))

    def _cuts(self) -> Iterator[list[int]]:
        places = range(1, len(self._input))
        yield self._kept
        for place in places:
            yield sorted({*self._waits, place})
        yield list(places)
        random = Random(self._seed)
        for _ in range(RANDOM_CUTS if places else 0):
            yield sorted({*self._kept, *random.sample(places, random.randint(1, len(places)))})

    def check_ends(self) -> None:
        """Check each beginning of the conversation, in one piece.

        If the client finishes, the server can have a last answer, so the same beginning is tried with a random cut.  If
        the connection breaks, the answer must be the one to single bytes.
        """
        __tracebackhide__ = True
        answers = self._answers_to_bytes()
        random = Random(self._seed)
        for end in range(len(self._input)):
            places = range(1, end)
            cut = sorted({*self._reference(end), *random.sample(places, min(1, len(places)))})
            self._check_end(cut, end, False, self._answer(cut, end))
            self._check_end(list(places), end, True, answers[end])

    def _check_end(self, cut: list[int], end: int, reset: bool, answer: Answer | BaseException) -> None:
        """Check that the input up to *end*, in one piece, raises nothing, and has *answer*, as with *cut*."""
        __tracebackhide__ = True
        whole = self._answer(self._reference(end), end, reset)
        if isinstance(whole, BaseException):
            self._fail("the server raises when the connection ends there", self._reference(end), end, reset)
        if not _same(whole, answer):
            self._store(cut, end, reset, answer)
            self._fail(
                "the answer to a beginning depends on how it is cut", self._smallest(cut, end, reset), end, reset
            )

    def _answers_to_bytes(self) -> list[Answer]:
        conversation = Conversation(self._server)
        answers = [conversation.answer()]
        for at in range(len(self._input)):
            conversation.send(self._input[at : at + 1])
            answers.append(conversation.answer())
        conversation.end()
        return answers

    def check_nothing_is_remembered(self) -> None:
        """Check the whole conversation again, because earlier connections may have left something behind."""
        __tracebackhide__ = True
        self._answer(self._waits)

    def check_work(self) -> None:
        __tracebackhide__ = True
        if not self._kept:  # the ends of messages are not cut
            check_work(self._server, self._input)

    # Trying a cut.

    def _answer(self, cut: Sequence[int], end: int | None = None, reset: bool = False) -> Answer | BaseException:
        """Return the answer to the input up to *end*, or the exception; it must be the same each time."""
        __tracebackhide__ = True
        answer: Answer | BaseException
        try:
            answer = converse(self._server, self._pieces(cut, end), reset=reset)
        except NotRead:
            raise
        except Exception as error:
            answer = error
        self._store(cut, end, reset, answer)
        return answer

    def _store(self, cut: Sequence[int], end: int | None, reset: bool, answer: Answer | BaseException) -> None:
        """Store the answer, and raise if there was another one before."""
        __tracebackhide__ = True
        before = self._answers.setdefault((tuple(cut), end, reset), answer)
        if not _same(before, answer):
            raise AssertionError(
                "the server gives different answers to the same input, cut the same way: to "
                f"{self._pieces(cut, end)!r} first {before!r}, then {answer!r}.  Its connections must not share state"
            )

    def _pieces(self, cut: Sequence[int], end: int | None = None) -> list[bytes]:
        places = [0, *cut, len(self._input) if end is None else end]
        return [self._input[start:stop] for start, stop in pairwise(places) if start < stop]

    def _smallest(self, cut: list[int], end: int | None = None, reset: bool = False) -> list[int]:
        """Return the places in *cut* that are needed to make a difference."""
        __tracebackhide__ = True
        for place in [place for place in cut if place not in self._kept]:
            without = [other for other in cut if other != place]
            if not _same(self._answer(without, end, reset), self._answer(self._reference(end), end, reset)):
                cut = without
        return cut

    def _reference(self, end: int | None) -> list[int]:
        """Return the cut to compare with: the messages of the whole conversation, or one piece for a beginning."""
        return self._waits if end is None else [place for place in self._kept if place < end]

    # Failing.

    def _fail(self, problem: str, cut: list[int], end: int | None = None, reset: bool = False) -> None:
        __tracebackhide__ = True
        pieces, others = self._pieces(cut, end), self._pieces(self._reference(end), end)
        # This raises an error if the answers differ without a cut.
        answer, other = self._answer(cut, end, reset), self._answer(self._reference(end), end, reset)
        raised = answer if isinstance(answer, BaseException) else None
        ending = ", reset=True" if reset else ""
        name = name_of(self._server)
        shown = f"{problem}.\n\nComing as\n    {pieces!r}\n"
        if raised is None:
            shown += f"it is answered\n    {answer}\nand coming as\n    {others!r}\nit is answered\n    {other}\n"
            test = (
                f"    answer = converse({name}, {others!r}{ending})\n"
                f"    assert converse({name}, {pieces!r}{ending}) == answer"
            )
        else:
            shown += f"{'and then a reset ' if reset else ''}it raises\n    {raised!r}\n"
            test = f"    converse({name}, {pieces!r}{ending})"
        again = f"To see it again (seed {self._seed}):\n\n{pasted('converse', self._server, test)}"
        raise AssertionError(f"{shown}\n{again}") from raised


def _same(one: Answer | BaseException, other: Answer | BaseException) -> bool:
    return type(one) is type(other) if isinstance(one, BaseException) else one == other
