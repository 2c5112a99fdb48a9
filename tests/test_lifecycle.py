"""The lifecycle of a connection: the table, and what it owes under any sequence of events."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pages
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngi_gevent.core import lifecycle
from ngi_gevent.core.lifecycle import (
    ABORT,
    BREAK,
    BROKEN,
    CLOSE,
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    FAIL,
    HANDSHAKE,
    HANDSHAKE_BEGUN,
    HANDSHAKE_DONE,
    HANDSHAKE_FAILED,
    INPUT_ENDED,
    KEEP,
    LOSE,
    NOTHING,
    OPEN,
    OUTPUT_ENDED,
    OUTPUT_FAILED,
    OWE,
    STATES,
    STOP,
    STOPPED,
    TRANSITIONS,
    Lifecycle,
)

EVENTS = sorted({event for _, event in TRANSITIONS})
BREAKS = BrokenPipeError("no reader")

#: Events, each with the reason that goes with it.
events = st.sampled_from(EVENTS).map(lambda event: (event, BREAKS if event == OUTPUT_FAILED else f"for {event}"))


def after(*happened):
    life = Lifecycle()
    for event, reason in happened:
        life.handle(event, reason)
    return life


def test_the_table_names_states_and_debts_that_there_are():
    assert {state for state, _ in TRANSITIONS} | {state for state, _ in TRANSITIONS.values()} == set(STATES)
    assert {debt for _, debt in TRANSITIONS.values()} == {OWE, NOTHING, KEEP}
    constants = {value for name, value in vars(lifecycle).items() if name.isupper() and isinstance(value, str)}
    assert set(EVENTS) == constants - set(STATES) - {OWE, NOTHING, KEEP, END_OF_INPUT, STOPPED}


def test_nothing_leads_back():
    order = {HANDSHAKE: 0, OPEN: 1, BROKEN: 2, CLOSING: 3, CLOSED: 4}
    back = {pair for pair, (state, _) in TRANSITIONS.items() if order[state] < order[pair[0]]}
    assert back == {(OPEN, HANDSHAKE_BEGUN)}


@pytest.mark.parametrize("state", STATES)
def test_the_application_can_always_end_it_and_is_then_owed_nothing(state):
    for event in CLOSE, ABORT:
        assert TRANSITIONS[state, event][1] is NOTHING
    assert TRANSITIONS[state, ABORT][0] is CLOSED


@pytest.mark.parametrize(
    ("happened", "state", "reason"),
    [
        ([(INPUT_ENDED, END_OF_INPUT)], CLOSING, END_OF_INPUT),
        ([(STOP, STOPPED)], CLOSING, STOPPED),
        ([(FAIL, BREAKS)], CLOSING, BREAKS),
        ([(BREAK, BREAKS)], CLOSED, BREAKS),
        ([(LOSE, BREAKS)], CLOSED, BREAKS),
        ([(CLOSE, None)], CLOSING, None),
        ([(ABORT, None)], CLOSED, None),
        ([(OUTPUT_FAILED, BREAKS)], BROKEN, None),
        ([(OUTPUT_FAILED, BREAKS), (INPUT_ENDED, BREAKS)], CLOSING, BREAKS),
        ([(INPUT_ENDED, END_OF_INPUT), (OUTPUT_ENDED, None)], CLOSED, END_OF_INPUT),
        ([(CLOSE, None), (OUTPUT_ENDED, None)], CLOSING, None),
        ([(CLOSE, None), (OUTPUT_ENDED, None), (INPUT_ENDED, END_OF_INPUT)], CLOSED, None),
        ([(INPUT_ENDED, END_OF_INPUT), (CLOSE, None)], CLOSING, None),
        ([(INPUT_ENDED, END_OF_INPUT), (STOP, STOPPED)], CLOSING, END_OF_INPUT),
        ([(HANDSHAKE_BEGUN, None), (STOP, STOPPED)], CLOSED, None),
        ([(HANDSHAKE_BEGUN, None), (HANDSHAKE_FAILED, None)], CLOSING, None),
        ([(HANDSHAKE_BEGUN, None), (HANDSHAKE_DONE, None)], OPEN, None),
    ],
)
def test_the_ways_to_end(happened, state, reason):
    life = after(*happened)
    assert life.state is state
    assert life.owes_reason() == (reason is not None)
    assert life.take_close_reason() is reason
    assert life.take_close_reason() is None


def test_what_the_log_is_told():
    assert after((CLOSE, None)).take_log_reason() == "closed"
    assert after((ABORT, None)).take_log_reason() == "aborted"
    assert after((STOP, STOPPED), (ABORT, None)).take_log_reason() == STOPPED
    assert after((HANDSHAKE_BEGUN, None), (HANDSHAKE_FAILED, None)).take_log_reason() is None
    life = after((FAIL, BREAKS))
    assert [life.take_log_reason(), life.take_log_reason()] == [BREAKS, None]


def test_another_thread_that_closes_is_believed_at_once():
    life = Lifecycle()
    life.closing_from_other_thread = True
    assert not life.is_open()
    assert not life.delivers_input()
    life.handle(INPUT_ENDED, END_OF_INPUT)
    assert not life.owes_reason()
    assert life.take_close_reason() is None


def test_input_is_delivered_after_sending_has_failed():
    life = after((OUTPUT_FAILED, BREAKS))
    assert life.output_error is BREAKS
    assert not life.is_open()
    assert life.delivers_input()


def test_it_is_gone_when_closed_and_the_callbacks_are_over():
    life = after((ABORT, None))
    assert not life.is_gone()
    assert not life.finishes()
    life.callbacks_are_over = True
    assert life.is_gone()
    assert [life.finishes(), life.finishes()] == [True, False]


def test_a_hub_that_has_gone_leaves_nothing_to_tell():
    life = after((INPUT_ENDED, END_OF_INPUT))
    life.abandon()
    assert life.is_gone()
    assert not life.finishes()
    assert life.take_close_reason() is life.take_log_reason() is None


@given(st.lists(events))
def test_any_events(happened):
    life = Lifecycle()
    told = logged = 0
    for event, reason in happened:
        before = life.state, life.input_is_over, life.output_is_over, life.output_error, life.owes_reason()
        entry = TRANSITIONS.get((life.state, event))
        assert life.handle(event, reason) == (entry is not None)
        if entry is None:
            assert before == (life.state, life.input_is_over, life.output_is_over, life.output_error, before[4])
            continue
        state, debt = entry
        assert life.state == (CLOSED if state == CLOSING and life.input_is_over and life.output_is_over else state)
        assert life.owes_reason() == (debt == OWE or (debt == KEEP and before[4]))
        assert life.is_open() == (life.state == OPEN)
        assert life.delivers_input() == life.is_established() == (life.state in (OPEN, BROKEN))
        assert not life.is_live() or life.state in (HANDSHAKE, OPEN, BROKEN)
        assert (life.state == BROKEN) <= (life.output_error is BREAKS)
        logged += life.take_log_reason() is not None
    told += life.take_close_reason() is not None
    assert told <= logged <= 1


def test_the_drawing_has_the_transitions_of_the_table():
    """Each arrow names its states, and the events in its label; what ends where it began is not drawn."""
    drawing = ElementTree.parse(pages.DOCS / "drawings" / "states.svg")
    drawn = {
        (text.attrib["data-from"], event, text.attrib["data-to"])
        for text in drawing.iter("{http://www.w3.org/2000/svg}text")
        if "data-from" in text.attrib
        for event in re.split(r", ", "".join(text.itertext()))
    }
    assert drawn == {(before, event, state) for (before, event), (state, _) in TRANSITIONS.items() if before != state}
