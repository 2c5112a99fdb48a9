"""Checks for the end of a connection that is not read.

The watcher of such a connection is stopped, so it does not report that the connection has broken, or that the peer has
finished.  A connection is not read in four cases:

* Its input has ended.
* The application pauses it.
* Too much output is pending.  (The write watcher reports a break, but it runs only while output waits for the kernel.)
* Its callback waits in ``while_open``.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core.lifecycle import END_OF_INPUT, Lifecycle

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.plain import Transport

__all__ = ["PROBE_INTERVAL", "Probe"]

#: Seconds between two checks.
PROBE_INTERVAL = 1.0


class Probed(Protocol):
    """The members of a connection that a probe uses."""

    _lifecycle: Lifecycle

    @property
    def input_ended(self) -> bool:
        """Whether the peer has finished sending, and all its input has been received."""

    def is_unread(self) -> bool:
        """Return whether nothing is received: the input has ended, it is paused, or too much output is pending."""

    def has_blocks(self) -> bool:
        """Return whether there are blocks that the end of the connection interrupts."""

    def has_eof_handler(self) -> bool:
        """Return whether the handler has ``handle_eof``."""

    def interrupt_blocks(self, reason: Reason | None = None) -> None:
        """Interrupt all blocks of ``while_open``, for *reason*."""

    def note_broken(self, error: OSError) -> None:
        """Drop output, because the connection has broken.  Input that had arrived is still delivered if possible."""


class Probe:
    """A timer, on the hub, that checks *connection* every second as long as it is not read."""

    __slots__ = ("_connection", "_loop", "_timer", "_transport")

    def __init__(self, connection: Probed, transport: Transport, loop: Any) -> None:
        self._connection = connection
        self._transport = transport
        self._loop = loop
        self._timer: Any = None

    def start(self) -> None:
        """Start the checks, unless they have started."""
        if self._timer is None:
            self._timer = self._loop.timer(PROBE_INTERVAL, PROBE_INTERVAL)
            self._timer.start(self.check, update=True)

    def close(self) -> None:
        """Stop the checks."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def check(self) -> None:
        """Check now."""
        connection = self._connection
        if not connection._lifecycle.is_established() or not (connection.is_unread() or connection.has_blocks()):
            self.close()
        elif (has_error := self._transport.has_error()) or self._has_ended_twice():
            if connection.is_unread() and (connection.input_ended or has_error):
                connection.note_broken(self._transport.take_error())
            else:
                # The end is reported after the input before it.  Taking the error would hide that input: the peer may
                # have closed a Unix socket after sending.
                broken = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                connection.interrupt_blocks(broken if has_error else END_OF_INPUT)
        elif not connection.has_eof_handler() and self._transport.peer_has_finished():
            connection.interrupt_blocks(END_OF_INPUT)

    def _has_ended_twice(self) -> bool:
        """Return whether the peer has ended both directions.  After the end of this side's output, this is normal."""
        return not self._connection._lifecycle.output_is_over and self._transport.is_broken()
