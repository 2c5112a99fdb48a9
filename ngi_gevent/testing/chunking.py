"""Whether what a server answers depends on how its input is cut, which TCP does as it likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from ngi_gevent.core.listening import check_server
from ngi_gevent.testing.conversation import Answer, Conversation, NotRead, converse
from ngi_gevent.testing.pasting import name_of, pasted
from ngi_gevent.testing.work import check_work

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IServer

__all__ = ["check_chunking"]

#: How many random ways to cut are tried.
RANDOM_CUTS = 50


def check_chunking(server: IServer, conversation: bytes | Sequence[bytes], *, seed: int = 0) -> None:
    """Check that *server* answers the same however its input is cut, and raises nothing wherever it ends.

    *conversation* is what a client sends: bytes, or a list of them where it waits for the answer in between.  The
    server gets it as it is, all in one piece, cut at every single place, a byte at a time, and cut at random places,
    for which *seed* is the seed; then all of its beginnings, after which the client finishes, or the connection breaks.
    And the work that it has must not grow with the square of its input: see :func:`check_work`.

    Each connection must be a new beginning: give a server that has its state for itself.  It runs in memory, on the
    calling greenlet; the time this takes grows with the square of the length of the conversation, of which a few
    hundred bytes are enough.

    Raises :class:`AssertionError` with the smallest cut that makes a difference, as a test to paste; or if the server
    gives a connection no handler.
    """
    __tracebackhide__ = True
    chunking = _Chunking(server, conversation, seed)
    chunking.check_whole()
    chunking.check_cuts()
    chunking.check_ends()
    chunking.check_nothing_is_remembered()
    chunking.check_work()


class _Chunking:
    """One check.  A cut is the places where the input is cut: sorted, none of them its beginning or end."""

    def __init__(self, server: IServer, conversation: bytes | Sequence[bytes], seed: int) -> None:
        check_server(server)
        messages = [conversation] if isinstance(conversation, (bytes, bytearray, memoryview)) else list(conversation)
        if not all(isinstance(message, (bytes, bytearray, memoryview)) for message in messages):
            raise TypeError(f"a conversation is bytes, or a list of bytes; got {conversation!r:.100}")
        self._server = server
        self._seed = seed
        self._input = b"".join(map(bytes, messages))
        if not self._input:
            raise ValueError("an empty conversation checks nothing; give what a client sends")
        ends = [sum(map(len, messages[:count])) for count in range(1, len(messages))]
        #: Where the client waits for the answer.
        self._waits = sorted(set(ends) - {0, len(self._input)})
        #: What each cut was answered, by the cut, the end and whether the connection broke.
        self._answers: dict[tuple[tuple[int, ...], int | None, bool], Answer | BaseException] = {}

    def check_whole(self) -> None:
        """As the client sends it, which must not raise, and must have the same answer again."""
        __tracebackhide__ = True
        expected = self._answer(self._waits)
        if isinstance(expected, BaseException):
            self._fail("the server raises, however its input is cut", self._waits)
        self._answer(self._waits)
        self._expected = expected

    def check_cuts(self) -> None:
        """The whole conversation, cut in many ways."""
        __tracebackhide__ = True
        for cut in self._cuts():
            if not _same(self._answer(cut), self._expected):
                self._fail("the answer depends on how the input is cut", self._smallest(cut))

    def _cuts(self) -> Iterator[list[int]]:
        places = range(1, len(self._input))
        yield []
        for place in places:
            yield sorted({*self._waits, place})
        yield list(places)
        random = Random(self._seed)
        for _ in range(RANDOM_CUTS if places else 0):
            yield sorted(random.sample(places, random.randint(1, len(places))))

    def check_ends(self) -> None:
        """Every beginning of the conversation, in one piece, and what it was answered a byte at a time."""
        __tracebackhide__ = True
        answers = self._answers_to_bytes()
        for end in range(len(self._input)):
            for reset in False, True:
                answer = self._answer([], end, reset)
                if isinstance(answer, BaseException):
                    self._fail("the server raises when the connection ends there", [], end, reset)
                if answer != answers[end]:
                    self._know(range(1, end), end, reset, answers[end])
                    cut = self._smallest(list(range(1, end)), end, reset)
                    self._fail("the answer to a beginning depends on how it is cut", cut, end, reset)

    def _answers_to_bytes(self) -> list[Answer]:
        conversation = Conversation(self._server)
        answers = [conversation.answer()]
        for at in range(len(self._input)):
            conversation.send(self._input[at : at + 1])
            answers.append(conversation.answer())
        conversation.end()
        return answers

    def check_nothing_is_remembered(self) -> None:
        """The whole conversation once more: whether what was cut off has left something behind."""
        __tracebackhide__ = True
        self._answer(self._waits)

    def check_work(self) -> None:
        __tracebackhide__ = True
        check_work(self._server, self._input)

    # Trying a cut.

    def _answer(self, cut: Sequence[int], end: int | None = None, reset: bool = False) -> Answer | BaseException:
        """The answer to the input up to *end*, or what was raised instead; it must be the same each time."""
        __tracebackhide__ = True
        answer: Answer | BaseException
        try:
            answer = converse(self._server, self._pieces(cut, end), reset=reset)
        except NotRead:
            raise
        except Exception as error:
            answer = error
        self._know(cut, end, reset, answer)
        return answer

    def _know(self, cut: Sequence[int], end: int | None, reset: bool, answer: Answer | BaseException) -> None:
        """Keep the answer, and raise if there was another one before."""
        __tracebackhide__ = True
        before = self._answers.setdefault((tuple(cut), end, reset), answer)
        if not _same(before, answer):
            raise AssertionError(
                "the server answers the same input, cut the same way, once so and once so, which makes it impossible "
                f"to say what cutting does: {self._pieces(cut, end)!r} first {before!r}, then {answer!r}.  Give a "
                "server whose every connection is a new beginning"
            )

    def _pieces(self, cut: Sequence[int], end: int | None = None) -> list[bytes]:
        places = [0, *cut, len(self._input) if end is None else end]
        return [self._input[start:stop] for start, stop in pairwise(places) if start < stop]

    def _smallest(self, cut: list[int], end: int | None = None, reset: bool = False) -> list[int]:
        """What is left of *cut*, which makes a difference, when every place that is not needed for it is left out."""
        __tracebackhide__ = True
        for place in list(cut):
            without = [other for other in cut if other != place]
            if not _same(self._answer(without, end, reset), self._answer(self._reference(end), end, reset)):
                cut = without
        return cut

    def _reference(self, end: int | None) -> list[int]:
        """The cut to compare with: as the client sends the whole conversation, but a beginning of it in one piece."""
        return self._waits if end is None else []

    # Showing it.

    def _fail(self, problem: str, cut: list[int], end: int | None = None, reset: bool = False) -> None:
        __tracebackhide__ = True
        pieces, others = self._pieces(cut, end), self._pieces(self._reference(end), end)
        # Once more, which raises if the difference is gone: it was not made by the cut.
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
            shown += f"{'and then breaking off ' if reset else ''}it raises\n    {raised!r}\n"
            test = f"    converse({name}, {pieces!r}{ending})"
        again = f"To see it again (seed {self._seed}):\n\n{pasted('converse', self._server, test)}"
        raise AssertionError(f"{shown}\n{again}") from raised


def _same(one: Answer | BaseException, other: Answer | BaseException) -> bool:
    return type(one) is type(other) if isinstance(one, BaseException) else one == other
