"""The lifecycle of a connection: its table, and the reasons that it owes after any sequence of events."""

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
    ABORTED,
    BREAK,
    BROKEN,
    CLOSE,
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    EOF_HANDLED,
    EOF_RECEIVED,
    FAIL,
    HALF_CLOSED,
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
    WRITE_EOF,
    Lifecycle,
)

EVENTS = sorted({event for _, event in TRANSITIONS})
BREAKS = BrokenPipeError("no reader")

#: Events, each with its reason.
events = st.sampled_from(EVENTS).map(lambda event: (event, BREAKS if event == OUTPUT_FAILED else f"for {event}"))


def after(*happened):
    life = Lifecycle()
    for event, reason in happened:
        life.handle(event, reason)
    return life


def test_the_table_uses_all_states_and_debts_and_no_others():
    assert {state for state, _ in TRANSITIONS} | {state for state, _ in TRANSITIONS.values()} == set(STATES)
    assert {debt for _, debt in TRANSITIONS.values()} == {OWE, NOTHING, KEEP}
    constants = {value for name, value in vars(lifecycle).items() if name.isupper() and isinstance(value, str)}
    assert set(EVENTS) == constants - set(STATES) - {OWE, NOTHING, KEEP, END_OF_INPUT, STOPPED, ABORTED}


def test_no_event_leads_back_to_an_earlier_state_except_the_handshake():
    order = {state: place for place, state in enumerate(STATES)}
    back = {pair for pair, (state, _) in TRANSITIONS.items() if order[state] < order[pair[0]]}
    assert back == {(OPEN, HANDSHAKE_BEGUN)}


@pytest.mark.parametrize("state", STATES)
def test_the_application_can_end_a_connection_in_every_state(state):
    assert TRANSITIONS[state, CLOSE][0] in (CLOSING, CLOSED)
    assert TRANSITIONS[state, ABORT][0] is CLOSED


@pytest.mark.parametrize(("before", "event"), TRANSITIONS)
def test_a_reason_is_owed_for_an_end_that_the_application_did_not_cause(before, event):
    after, debt = TRANSITIONS[before, event]
    ends = after in (CLOSING, CLOSED) and before not in (CLOSING, CLOSED)
    if event in (CLOSE, ABORT):
        assert debt is NOTHING
    elif ends:
        assert debt is (NOTHING if before is HANDSHAKE else OWE)
    else:
        assert debt is KEEP


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
        ([(WRITE_EOF, None), (OUTPUT_ENDED, None)], HALF_CLOSED, None),
        ([(WRITE_EOF, None), (OUTPUT_ENDED, None), (INPUT_ENDED, END_OF_INPUT)], CLOSED, END_OF_INPUT),
        ([(WRITE_EOF, None), (INPUT_ENDED, END_OF_INPUT), (OUTPUT_ENDED, None)], CLOSED, END_OF_INPUT),
        ([(WRITE_EOF, None), (OUTPUT_FAILED, BREAKS), (LOSE, BREAKS)], CLOSED, BREAKS),
        ([(EOF_RECEIVED, None)], OPEN, None),
        ([(EOF_RECEIVED, None), (FAIL, END_OF_INPUT)], CLOSING, END_OF_INPUT),
        ([(EOF_RECEIVED, None), (WRITE_EOF, None), (OUTPUT_ENDED, None)], CLOSED, None),
        ([(WRITE_EOF, None), (OUTPUT_ENDED, None), (EOF_RECEIVED, None)], HALF_CLOSED, None),
        ([(WRITE_EOF, None), (OUTPUT_ENDED, None), (EOF_RECEIVED, None), (EOF_HANDLED, None)], CLOSED, None),
        ([(CLOSE, None), (OUTPUT_ENDED, None)], CLOSING, None),
        ([(CLOSE, None), (OUTPUT_ENDED, None), (INPUT_ENDED, END_OF_INPUT)], CLOSED, None),
        ([(INPUT_ENDED, END_OF_INPUT), (CLOSE, None)], CLOSING, None),
        ([(INPUT_ENDED, END_OF_INPUT), (STOP, STOPPED)], CLOSING, END_OF_INPUT),
        ([(HANDSHAKE_BEGUN, None), (STOP, STOPPED)], CLOSED, None),
        ([(HANDSHAKE_BEGUN, None), (HANDSHAKE_FAILED, None)], CLOSING, None),
        ([(HANDSHAKE_BEGUN, None), (HANDSHAKE_DONE, None)], OPEN, None),
    ],
)
def test_each_end_has_its_state_and_its_reason(happened, state, reason):
    life = after(*happened)
    assert life.state is state
    assert life.owes_reason() == (reason is not None)
    assert life.take_close_reason() is reason
    assert life.take_close_reason() is None


def test_the_reason_is_logged_once():
    assert after((CLOSE, None)).take_log_reason() == "closed"
    assert after((ABORT, None)).take_log_reason() == "aborted"
    assert after((STOP, STOPPED), (ABORT, None)).take_log_reason() == STOPPED
    assert after((HANDSHAKE_BEGUN, None), (HANDSHAKE_FAILED, None)).take_log_reason() is None
    life = after((FAIL, BREAKS))
    assert [life.take_log_reason(), life.take_log_reason()] == [BREAKS, None]


def test_a_close_from_another_thread_takes_effect_at_once():
    life = Lifecycle()
    life.closing_from_other_thread = True
    assert not life.is_open()
    assert not life.delivers_input()
    life.handle(INPUT_ENDED, END_OF_INPUT)
    assert not life.owes_reason()
    assert life.take_close_reason() is None


def test_an_end_of_output_from_another_thread_takes_effect_at_once():
    life = Lifecycle()
    life.eof_from_other_thread = True
    assert life.is_open()
    assert life.delivers_input()
    assert not life.takes_output()


def test_an_error_from_another_thread_refuses_output_at_once():
    life = Lifecycle()
    life.output_error = BREAKS
    assert not life.is_open()
    assert life.delivers_input()


def test_input_is_delivered_after_sending_has_failed():
    life = after((OUTPUT_FAILED, BREAKS))
    assert life.output_error is BREAKS
    assert not life.is_open()
    assert life.delivers_input()


def test_if_sending_fails_in_the_handshake_it_has_failed_afterwards():
    life = after((HANDSHAKE_BEGUN, None), (OUTPUT_FAILED, BREAKS))
    assert life.state is HANDSHAKE
    life.handle(HANDSHAKE_DONE)
    assert life.state is BROKEN
    assert not life.is_open()
    assert life.delivers_input()


def test_the_first_error_on_sending_is_kept():
    life = after((CLOSE, None), (OUTPUT_FAILED, BREAKS), (OUTPUT_FAILED, OSError()))
    assert life.output_error is BREAKS
    assert after((FAIL, BREAKS)).output_error is None  # this error does not concern sending


def test_a_connection_is_live_until_it_has_ended():
    life = Lifecycle()
    assert life.is_live()
    life.handle(HANDSHAKE_BEGUN)
    assert life.is_live()
    assert not life.is_established()
    life.handle(HANDSHAKE_FAILED)
    assert not life.is_live()


def test_a_connection_is_gone_when_it_is_closed_and_its_callbacks_have_returned():
    life = Lifecycle()
    life.callbacks_are_over = True
    assert not life.is_gone()
    life = after((ABORT, None))
    assert not life.is_gone()
    assert not life.finishes()
    life.callbacks_are_over = True
    assert life.is_gone()
    assert [life.finishes(), life.finishes()] == [True, False]


def test_an_abandoned_connection_has_nothing_to_report():
    life = after((INPUT_ENDED, END_OF_INPUT))
    life.abandon()
    assert life.is_gone()
    assert not life.finishes()
    assert life.take_close_reason() is life.take_log_reason() is None


@given(st.lists(events))
def test_any_sequence_of_events_follows_the_table(happened):
    life = Lifecycle()
    logged = 0
    for event, reason in happened:
        before = life.state, life.input_is_over, life.output_is_over, life.output_error, life.owes_reason()
        entry = TRANSITIONS.get((life.state, event))
        assert life.handle(event, reason) == (entry is not None)
        if entry is None:
            assert before == (life.state, life.input_is_over, life.output_is_over, life.output_error, before[4])
            continue
        state, debt = entry
        if life.input_is_over and life.output_is_over and event != EOF_RECEIVED:
            state = CLOSED
        elif state == OPEN and life.output_error:
            state = BROKEN
        assert life.state == state
        assert life.owes_reason() == (debt == OWE or (debt == KEEP and before[4]))
        assert life.is_open() == (life.state in (OPEN, HALF_CLOSED))
        assert life.takes_output() == (life.state == OPEN)
        assert life.delivers_input() == life.is_established() == (life.state in (OPEN, HALF_CLOSED, BROKEN))
        assert not life.is_live() or life.state in (HANDSHAKE, OPEN, HALF_CLOSED, BROKEN)
        assert (life.state == BROKEN) <= (life.output_error is BREAKS)
        if life.input_is_over and life.output_is_over and event != EOF_RECEIVED:
            assert life.state == CLOSED
        logged += life.take_log_reason() is not None
    told = life.take_close_reason() is not None
    assert told <= logged <= 1


def test_the_drawing_shows_the_transitions_of_the_table():
    """The arrows of the drawing name their states, and their labels name the events.  Events that keep the state have
    no arrow.
    """
    drawing = ElementTree.parse(pages.DOCS / "drawings" / "states.svg")
    drawn = {
        (text.attrib["data-from"], event, text.attrib["data-to"])
        for text in drawing.iter("{http://www.w3.org/2000/svg}text")
        if "data-from" in text.attrib
        for event in re.split(r", ", "".join(text.itertext()))
    }
    assert drawn == {(before, event, state) for (before, event), (state, _) in TRANSITIONS.items() if before != state}


def test_the_drawing_has_the_states_that_end_once_both_sides_have_ended():
    def ends(state):
        life = Lifecycle()
        life.state, life.input_is_over = state, True
        life.handle(OUTPUT_ENDED)
        return life.state == CLOSED

    drawing = ElementTree.parse(pages.DOCS / "drawings" / "states.svg")
    texts = drawing.iter("{http://www.w3.org/2000/svg}text")
    drawn = [text.attrib["data-both-ended"] for text in texts if "data-both-ended" in text.attrib]
    assert sorted(drawn) == sorted(state for state in STATES if state != CLOSED and ends(state))
