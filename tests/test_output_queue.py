"""The queue of output: nothing is lost, doubled or reordered, whatever the kernel takes; and when it is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngi_gevent.core.output import HIGH_WATER, JOINED_SIZE, LOW_WATER, PIECES_AT_ONCE, Lines, OutputQueue


class Kernel:
    """Takes so many bytes in each call, and then no more."""

    def __init__(self, takes):
        self.takes = list(takes)
        self.taken = b""
        self.calls = []

    def send(self, data):
        return self.sendmsg([data])

    def sendmsg(self, pieces):
        self.calls.append([len(piece) for piece in pieces])
        if not self.takes:
            raise BlockingIOError
        data = b"".join(pieces)[: self.takes.pop(0)]
        self.taken += data
        return len(data)


def flushed(queue, *takes):
    kernel = Kernel(takes)
    queue.flush(kernel.send, kernel.sendmsg)
    return kernel


def left(queue):
    return b"".join(queue.pieces)


sizes = st.one_of(st.integers(1, 40), st.sampled_from([JOINED_SIZE - 1, JOINED_SIZE, JOINED_SIZE + 1]))


@given(st.lists(st.tuples(st.lists(sizes, max_size=30), st.lists(st.integers(1, 100_000), max_size=5))))
def test_output_leaves_whole_and_in_order(turns):
    queue, written, taken, letter = OutputQueue(), b"", b"", 0
    for pieces, takes in turns:
        for size in pieces:
            letter += 1
            piece = bytes([letter % 251]) * size
            queue.append(piece)
            written += piece
        taken += flushed(queue, *takes).taken
        assert taken + left(queue) == written
        assert queue.size == len(left(queue))
    flushed(queue, *[1_000_000] * 1000)
    assert queue.size == 0
    assert queue.pieces == []


def test_small_pieces_leave_in_one_call_and_large_ones_uncopied():
    queue = OutputQueue()
    for size in 10, 20, JOINED_SIZE, JOINED_SIZE, 5:
        queue.append(b"x" * size)
    large = queue.pieces[2]
    assert flushed(queue, 10**6).calls == [[30, JOINED_SIZE, JOINED_SIZE, 5]]
    queue.append(large)
    assert queue.pieces[0] is large


def test_not_all_pieces_are_sent_at_once():
    queue = OutputQueue()
    for _ in range(PIECES_AT_ONCE + 1):
        queue.append(b"x" * JOINED_SIZE)
    assert [len(call) for call in flushed(queue, 10**7, 10**7).calls] == [PIECES_AT_ONCE, 1]


def test_a_piece_of_nothing_is_handed_to_the_kernel_too():
    """It stands for messages of TLS itself."""
    queue = OutputQueue()
    queue.pieces.append(b"")
    assert flushed(queue, 10).calls == [[0]]
    assert queue.pieces == []


def test_an_error_of_sending_is_raised_and_loses_nothing():
    def send(data):
        raise BrokenPipeError

    queue = OutputQueue()
    queue.append(b"data")
    with pytest.raises(BrokenPipeError):
        queue.flush(send, send)
    assert (left(queue), queue.size) == (b"data", 4)
    queue.drop()
    assert (left(queue), queue.size) == (b"", 0)


def test_one_large_write_is_not_too_much_but_one_more_is():
    queue = OutputQueue(limit=100)
    queue.append(b"x" * 100)
    assert not queue.is_over_limit()
    queue.append(b"x")
    assert queue.is_over_limit()


def test_input_waits_once_it_was_answered_with_as_much_again():
    queue = OutputQueue()
    queue.append(b"x" * (HIGH_WATER + 1))
    assert not queue.exceeds_threshold()  # it was written in answer to nothing
    assert not queue.is_full()  # from here on, it counts
    queue.append(b"x" * HIGH_WATER)
    assert not queue.is_full()
    queue.append(b"x")
    assert queue.is_full()
    assert queue.exceeds_threshold()
    flushed(queue, queue.size - LOW_WATER - 1)
    assert not queue.is_low()
    assert queue.pause_threshold is not None
    flushed(queue, 1)
    assert queue.is_low()
    queue.is_pausing = True
    assert queue.end_pause()
    assert not queue.end_pause()
    assert queue.pause_threshold is None


def test_output_that_waits_elsewhere_counts():
    queue = OutputQueue()
    assert not queue.is_full(HIGH_WATER + 1)
    assert queue.is_full(2 * HIGH_WATER + 2)


def test_iterables_count():
    assert Lines([b"x" * 5000, memoryview(b"y" * 1000).cast("H")]).size == 6000
    assert Lines(iter([b"x" * 5000])).size == Lines([]).size == Lines.ITERATOR_SIZE


def test_an_iterable_is_closed_if_it_can_be():
    closed = []

    def generator():
        try:
            yield b"x"
        finally:
            closed.append(1)

    lines = Lines(generator())
    assert lines.pull() == b"x"
    lines.close()
    assert closed == [1]
    Lines(iter([b"x"])).close()
