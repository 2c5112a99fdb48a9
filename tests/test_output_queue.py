"""The queue of output: no byte is lost, doubled or reordered, whatever the kernel accepts; and its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngi_gevent.core import output
from ngi_gevent.core.output import HIGH_WATER, JOINED_SIZE, LOW_WATER, PIECES_AT_ONCE, Lines, OutputQueue


class Kernel:
    """A kernel that accepts the given number of bytes in each call, and then blocks.

    It records the sizes of the pieces.
    """

    def __init__(self, takes):
        self.takes = list(takes)
        self.taken = b""
        self.calls = []

    def send(self, data):
        self.calls.append(len(data))
        return self._take([data])

    def sendmsg(self, pieces):
        self.calls.append([len(piece) for piece in pieces])
        return self._take(pieces)

    def _take(self, pieces):
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


@given(st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=5))))
def test_output_leaves_complete_and_in_order(turns):
    """Each turn has the sizes of the writes and the sizes that the kernel accepts.  Bytes hold both, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "JOINED_SIZE", 64)  # with this size, some pieces stay separate without megabytes of data
        leaves_whole_and_in_order(turns)


def leaves_whole_and_in_order(turns):
    queue, written, taken, letter = OutputQueue(), b"", b"", 0
    for pieces, takes in turns:
        for size in pieces:
            letter += 1
            piece = bytes([letter % 251]) * (size % 80 + 1)
            queue.append(piece)
            written += piece
        taken += flushed(queue, *(size + 1 for size in takes)).taken
        assert taken + left(queue) == written
        assert queue.size == len(left(queue))
    flushed(queue, *[1_000_000] * 1000)
    assert queue.size == 0
    assert queue.pieces == []


def test_small_pieces_leave_in_one_call_and_large_ones_are_not_copied():
    queue = OutputQueue()
    for size in 10, 20, JOINED_SIZE, JOINED_SIZE, 5:
        queue.append(b"x" * size)
    large = queue.pieces[2]
    assert flushed(queue, 10**6).calls == [[30, JOINED_SIZE, JOINED_SIZE, 5]]
    queue.append(large)
    assert queue.pieces[0] is large


def test_pieces_are_joined_up_to_a_size():
    queue = OutputQueue()
    for size in JOINED_SIZE - 9, 5, 4, 1:
        queue.append(b"x" * size)
    assert flushed(queue, 10**6).calls == [[JOINED_SIZE, 1]]


def test_the_rest_of_a_piece_is_not_copied():
    queue = OutputQueue()
    queue.append(b"x" * JOINED_SIZE)
    queue.append(b"y" * JOINED_SIZE)
    # There is no second call, since the kernel has accepted only a part.
    assert flushed(queue, 1).calls == [[JOINED_SIZE, JOINED_SIZE]]
    rest = queue.pieces[0]
    assert isinstance(rest, memoryview)
    assert flushed(queue).calls == [[JOINED_SIZE - 1, JOINED_SIZE]]
    assert queue.pieces[0] is rest


def test_one_call_sends_a_limited_number_of_pieces():
    queue = OutputQueue()
    for _ in range(PIECES_AT_ONCE + 1):
        queue.append(b"x" * JOINED_SIZE)
    assert flushed(queue, 10**7, 10**7).calls == [[JOINED_SIZE] * PIECES_AT_ONCE, JOINED_SIZE]


def test_an_empty_piece_is_passed_to_the_kernel():
    """An empty piece stands for messages that belong to TLS."""
    queue = OutputQueue()
    queue.pieces.append(b"")
    assert flushed(queue, 10).calls == [0]
    assert queue.pieces == []


def test_an_error_of_the_kernel_is_raised_and_loses_nothing():
    def send(data):
        raise BrokenPipeError

    queue = OutputQueue()
    queue.append(b"data")
    with pytest.raises(BrokenPipeError):
        queue.flush(send, send)
    assert (left(queue), queue.size) == (b"data", 4)
    queue.drop()
    assert (left(queue), queue.size) == (b"", 0)


def test_one_large_write_is_within_the_limit_and_one_more_is_not():
    queue = OutputQueue(limit=100)
    queue.append(b"x" * 100)
    assert not queue.is_over_limit()
    queue.append(b"x")
    assert queue.is_over_limit()


def test_answers_are_not_limited_below_the_high_water_mark():
    queue = OutputQueue()
    assert not queue.is_full()
    queue.append(b"x" * HIGH_WATER)
    assert not queue.is_full()
    assert queue.pause_threshold is None


def test_input_pauses_when_pending_output_has_doubled():
    queue = OutputQueue()
    queue.append(b"x" * (HIGH_WATER + 1))
    assert not queue.exceeds_threshold()  # this output answers no input
    assert not queue.is_full()  # this call sets the threshold
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


def test_iterables_count_with_a_fixed_size_and_lists_with_their_bytes():
    lines = Lines([b"x" * 5000, memoryview(b"y" * 1000).cast("H")])
    assert lines.size == Lines.ITERATOR_SIZE + 6000
    # The list has grown since it was measured.
    assert [lines.note_pulled(5000), lines.note_pulled(2000)] == [5000, 1000]
    assert lines.size == Lines.ITERATOR_SIZE
    assert Lines(iter([b"x" * 5000])).size == Lines([]).size == Lines.ITERATOR_SIZE
    assert Lines([None] * 5000).size == Lines.ITERATOR_SIZE  # such items raise only when they are pulled


def test_an_iterable_is_closed_if_it_has_a_close_method():
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


def test_a_new_drain_does_not_wake_the_earlier_ones():
    class Counting:
        def __init__(self):
            self.set_count = 0

        def set(self):
            self.set_count += 1

    output = OutputQueue()
    output.append(b"x" * 100)
    flags = [Counting() for _ in range(3)]
    for flag in flags:
        output.add_drain(flag, 200)
    assert [flag.set_count for flag in flags] == [1, 1, 1]
