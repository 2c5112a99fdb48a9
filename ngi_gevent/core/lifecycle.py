"""The life of a connection: its states, the events that change them, and the reason for ``handle_close``.

A connection is in one state at a time:

===========  ==================================================================================
state        meaning
===========  ==================================================================================
HANDSHAKE    The PROXY header or TLS is not done yet.  The application does not have the connection.
OPEN         Input is delivered, and output is taken.  Every connection begins here.
HALF_CLOSED  ``write_eof`` was called.  Output that was taken is being delivered, and so is input.
BROKEN       Sending has failed.  Output is refused; input that had arrived is still delivered.
CLOSING      Output that was taken is being delivered.  New output is refused, input is discarded.
CLOSED       Nothing is sent or received.  Output that was not delivered is dropped.
===========  ==================================================================================

For each state and event, ``TRANSITIONS`` has the next state, and the effect of the event on the debt.  The debt is the
reason for a call of ``handle_close`` that is still due.  An event without an entry changes nothing.  Two rules are not
in the table:

* Once input and output have both ended, the connection is CLOSED.  If EOF_RECEIVED is the last of these events,
  ``handle_eof`` is called first, and the connection is CLOSED at EOF_HANDLED.
* If sending has failed during the handshake, HANDSHAKE_DONE leads to BROKEN.

Three things are not events:

* Another native thread ends the output or the connection: see ``eof_from_other_thread``, ``closing_from_other_thread``.
* The hub ends: see ``abandon``.
* The process forks: see ``abandon``, too.  In the child, the connection belongs to the parent.

This module is pure: it uses neither sockets nor greenlets.  Each connection, on sockets or in memory, passes events to
its own ``Lifecycle``, and acts on new states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = [
    "ABORT",
    "ABORTED",
    "BREAK",
    "BROKEN",
    "CLOSE",
    "CLOSED",
    "CLOSING",
    "END_OF_INPUT",
    "EOF_HANDLED",
    "EOF_RECEIVED",
    "FAIL",
    "HALF_CLOSED",
    "HANDSHAKE",
    "HANDSHAKE_BEGUN",
    "HANDSHAKE_DONE",
    "HANDSHAKE_FAILED",
    "INPUT_ENDED",
    "KEEP",
    "LOSE",
    "NOTHING",
    "OPEN",
    "OUTPUT_ENDED",
    "OUTPUT_FAILED",
    "OWE",
    "STATES",
    "STOP",
    "STOPPED",
    "TRANSITIONS",
    "WRITE_EOF",
    "Lifecycle",
]

# The states.
HANDSHAKE: Final = "handshake"
OPEN: Final = "open"
HALF_CLOSED: Final = "half-closed"
BROKEN: Final = "broken"
CLOSING: Final = "closing"
CLOSED: Final = "closed"
STATES: Final = (HANDSHAKE, OPEN, HALF_CLOSED, BROKEN, CLOSING, CLOSED)

# The events.
HANDSHAKE_BEGUN: Final = "handshake begun"  # before the application has the connection
HANDSHAKE_DONE: Final = "handshake done"
HANDSHAKE_FAILED: Final = "handshake failed"
WRITE_EOF: Final = "write_eof"  # by the application
CLOSE: Final = "close"  # by the application
ABORT: Final = "abort"  # by the application; the connection is reset
FAIL: Final = "fail"  # by the application, or a handler raised, or the connection was idle; output is delivered
STOP: Final = "stop"  # the listener or the implementation was closed; output that would have to wait is dropped
EOF_RECEIVED: Final = "EOF received"  # the peer has finished sending, and ``handle_eof`` is called
EOF_HANDLED: Final = "EOF handled"  # ``handle_eof`` has returned
INPUT_ENDED: Final = "input ended"  # the peer has finished sending, and the handler has no ``handle_eof``
OUTPUT_ENDED: Final = "output ended"  # the kernel has all output, and the peer will see its end
OUTPUT_FAILED: Final = "output failed"
LOSE: Final = "lose"  # the connection broke, or nothing is left to wait for
BREAK: Final = "break"  # this side gives up, for example on a peer that takes no output; the connection is reset

# The effects of an event on the debt.
OWE: Final = "owe"  # the handler is owed the event's reason
NOTHING: Final = "nothing"  # the application ended the connection, or never had it; the debt is cancelled
KEEP: Final = "keep"

TRANSITIONS: Final[dict[tuple[str, str], tuple[str, str]]] = {
    (OPEN, HANDSHAKE_BEGUN): (HANDSHAKE, KEEP),
    (HANDSHAKE, HANDSHAKE_DONE): (OPEN, KEEP),
    (HANDSHAKE, HANDSHAKE_FAILED): (CLOSING, NOTHING),  # the peer still receives an alert
    (HANDSHAKE, CLOSE): (CLOSED, NOTHING),
    (HANDSHAKE, ABORT): (CLOSED, NOTHING),
    (HANDSHAKE, STOP): (CLOSED, NOTHING),
    (HANDSHAKE, OUTPUT_FAILED): (HANDSHAKE, KEEP),
    (HANDSHAKE, LOSE): (CLOSED, NOTHING),
    (HANDSHAKE, BREAK): (CLOSED, NOTHING),
    (OPEN, WRITE_EOF): (HALF_CLOSED, KEEP),
    (OPEN, CLOSE): (CLOSING, NOTHING),
    (OPEN, ABORT): (CLOSED, NOTHING),
    (OPEN, FAIL): (CLOSING, OWE),
    (OPEN, STOP): (CLOSING, OWE),
    (OPEN, EOF_RECEIVED): (OPEN, KEEP),
    (OPEN, INPUT_ENDED): (CLOSING, OWE),
    (OPEN, OUTPUT_FAILED): (BROKEN, KEEP),
    (OPEN, LOSE): (CLOSED, OWE),
    (OPEN, BREAK): (CLOSED, OWE),
    (HALF_CLOSED, CLOSE): (CLOSING, NOTHING),
    (HALF_CLOSED, ABORT): (CLOSED, NOTHING),
    (HALF_CLOSED, FAIL): (CLOSING, OWE),
    (HALF_CLOSED, STOP): (CLOSING, OWE),
    (HALF_CLOSED, EOF_RECEIVED): (HALF_CLOSED, KEEP),
    (HALF_CLOSED, EOF_HANDLED): (HALF_CLOSED, KEEP),
    (HALF_CLOSED, INPUT_ENDED): (CLOSING, OWE),
    (HALF_CLOSED, OUTPUT_ENDED): (HALF_CLOSED, KEEP),
    (HALF_CLOSED, OUTPUT_FAILED): (BROKEN, KEEP),
    (HALF_CLOSED, LOSE): (CLOSED, OWE),
    (HALF_CLOSED, BREAK): (CLOSED, OWE),
    (BROKEN, CLOSE): (CLOSING, NOTHING),
    (BROKEN, ABORT): (CLOSED, NOTHING),
    (BROKEN, FAIL): (CLOSING, OWE),
    (BROKEN, STOP): (CLOSING, OWE),
    (BROKEN, INPUT_ENDED): (CLOSING, OWE),
    (BROKEN, LOSE): (CLOSED, OWE),
    (BROKEN, BREAK): (CLOSED, OWE),
    (CLOSING, CLOSE): (CLOSING, NOTHING),
    (CLOSING, ABORT): (CLOSED, NOTHING),
    (CLOSING, INPUT_ENDED): (CLOSING, KEEP),
    (CLOSING, OUTPUT_ENDED): (CLOSING, KEEP),
    (CLOSING, OUTPUT_FAILED): (CLOSING, KEEP),
    (CLOSING, LOSE): (CLOSED, KEEP),
    (CLOSING, BREAK): (CLOSED, KEEP),
    (CLOSED, CLOSE): (CLOSED, NOTHING),
    (CLOSED, ABORT): (CLOSED, NOTHING),
}

#: The states in which the application has the connection, and input is delivered.
ESTABLISHED: Final = (OPEN, HALF_CLOSED, BROKEN)

# Reasons for which nothing went wrong.
END_OF_INPUT: Final = "end of input"
STOPPED: Final = "stopped"

# The reason for the log and the counters after ``abort``.  After ``close``, it is CLOSED.
ABORTED: Final = "aborted"


class Lifecycle:
    """The state of one connection, and the reasons that its handler and the log have not received yet."""

    __slots__ = (
        "_close_reason",
        "_is_finished",
        "_log_reason",
        "callbacks_are_over",
        "closing_from_other_thread",
        "eof_from_other_thread",
        "input_is_over",
        "is_stopped",
        "output_error",
        "output_is_over",
        "state",
    )

    def __init__(self) -> None:
        #: One of ``STATES``.
        self.state: str = OPEN
        #: Whether the peer has finished sending.
        self.input_is_over = False
        #: Whether this side has finished sending.
        self.output_is_over = False
        #: The error with which sending has failed.  If another thread has written too much, the state is still OPEN
        #: until the connection's own thread handles BREAK.
        self.output_error: BaseException | None = None
        #: Whether the listener or the implementation has ended the connection.  Then the connection does not wait for
        #: a peer that does not take output.
        self.is_stopped = False
        #: Whether all callbacks are over: none runs, and none will.
        self.callbacks_are_over = False
        #: Whether another native thread has closed or aborted the connection.  From then on, no callback is called and
        #: no output is taken.  The connection's own thread handles the event soon.
        self.closing_from_other_thread = False
        #: Whether another native thread has called ``write_eof``.  From then on, no output is taken.
        self.eof_from_other_thread = False
        self._close_reason: Reason | None = None
        self._log_reason: Reason | None = None
        self._is_finished = False

    def handle(self, event: str, reason: Reason | None = None) -> bool:
        """Go to the state that follows *event*.  Return whether the table has an entry for it.

        :param reason: the reason that the handler is owed if the entry says so.
        """
        before = self.state
        entry = TRANSITIONS.get((before, event))
        if entry is None:
            return False
        self.state, debt = entry
        if event is INPUT_ENDED or event is EOF_RECEIVED:
            self.input_is_over = True
        elif event is OUTPUT_ENDED:
            self.output_is_over = True
        elif event is STOP:
            self.is_stopped = True
        elif event is OUTPUT_FAILED and isinstance(reason, BaseException):
            self.output_error = self.output_error or reason
        if self.input_is_over and self.output_is_over and event is not EOF_RECEIVED:
            self.state = CLOSED
        elif self.state is OPEN and self.output_error is not None:
            self.state = BROKEN
        if debt is not KEEP:
            self._close_reason = reason if debt is OWE else None
        if before in ESTABLISHED and self.state in (CLOSING, CLOSED):
            self._log_reason = reason if debt is OWE else ABORTED if event is ABORT else CLOSED
        return True

    def finishes(self) -> bool:
        """Return True once, when the connection is gone, and its references must be released."""
        if self.state is not CLOSED or not self.callbacks_are_over or self._is_finished:
            return False
        self._is_finished = True
        return True

    def resets(self, event: str) -> bool:
        """Return whether *event* resets the connection, so that the peer cannot take this for a graceful end."""
        return event in (ABORT, BREAK) and self.state is not CLOSED

    def abandon(self) -> None:
        """Go to CLOSED without a debt, because the hub has gone, or this is a forked child.  Callbacks will not run.

        May be called on any native thread.
        """
        self.state = CLOSED
        self._close_reason = self._log_reason = None
        self.callbacks_are_over = self._is_finished = True

    def is_open(self) -> bool:
        """Return whether the connection is true: neither side has ended it."""
        is_open = self.state is OPEN or self.state is HALF_CLOSED
        return is_open and not self.closing_from_other_thread and self.output_error is None

    def takes_output(self) -> bool:
        """Return whether the application can write."""
        return self.state is OPEN and self.is_open() and not self.eof_from_other_thread

    def is_established(self) -> bool:
        """Return whether the application has the connection, and its own thread has not handled an end."""
        return self.state in ESTABLISHED

    def delivers_input(self) -> bool:
        """Return whether input is delivered: this side has neither ended the connection nor received its end."""
        return self.state in ESTABLISHED and not self.closing_from_other_thread

    def is_live(self) -> bool:
        """Return whether input is delivered, or will be after the handshake."""
        return self.state is HANDSHAKE or self.delivers_input()

    def is_gone(self) -> bool:
        """Return whether the connection is closed, and its last callback is over."""
        return self.state is CLOSED and self.callbacks_are_over

    def owes_reason(self) -> bool:
        """Return whether ``handle_close`` is still due, because the application did not end the connection."""
        return self._close_reason is not None and not self.closing_from_other_thread

    def take_close_reason(self) -> Reason | None:
        """Return the reason for ``handle_close``, once; None if the application ended the connection."""
        reason, self._close_reason = self._close_reason, None
        return None if self.closing_from_other_thread else reason

    def take_log_reason(self) -> Reason | None:
        """Return the reason for the log, once; None if there is nothing to log."""
        reason, self._log_reason = self._log_reason, None
        return reason
