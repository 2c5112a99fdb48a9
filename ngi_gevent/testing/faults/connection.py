"""A connection whose input and output pass through the faults of a plan."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import Within, bottom
from ngi_gevent.core.lifecycle import END_OF_INPUT, STOPPED
from ngi_gevent.core.threads import Flag
from ngi_gevent.testing.faults.arriving import Arriving
from ngi_gevent.testing.faults.bursts import Bursts
from ngi_gevent.testing.faults.plan import Faults, InputFaults
from ngi_gevent.testing.faults.wrapping import WrappingConnection, WrappingListener

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason
    from ngi_gevent.testing.faults.link import Links

__all__ = ["FaultyConnection"]

NO_FAULTS = Faults()


class FaultyConnection(WrappingConnection):
    """One side of a connection.  Its link passes the ends of its bursts to the other side."""

    def __init__(
        self, links: Links, connection: Any, control: WrappingListener | None, faults: Faults | None = None
    ) -> None:
        super().__init__(connection, control)
        here, there = connection.local_address, connection.peer_address
        addresses = (here, there) if control is None else (there, here)
        self._links = links
        self._link = links.join(self, addresses, faults)
        connection.when_closed(lambda: links.leave(addresses))
        self._bursts = Bursts(connection)
        self._arriving: Arriving | None = None  # None until the faults are known
        self._aborted = False
        self._eof_handled = False

    # Output.

    def run_callback(self, call: Any, *arguments: Any) -> Any:
        return self._bursts.run_callback(call, *arguments)

    def write(self, data: Data) -> None:
        self._bursts.write(data)

    def writelines(self, data: Iterable[Data]) -> None:
        self._bursts.writelines(data, is_cut=self._link.faults != NO_FAULTS)

    def write_eof(self) -> None:
        self._bursts.write_eof()

    def abort(self) -> None:
        self._aborted = True
        self.connection.abort()

    # Input.

    def handle_input(self, connection: Any, data: bytes) -> None:
        if self._link.faults is None:
            self._link.faults = self._links.take_faults()
        faults = self._link.faults
        if faults == NO_FAULTS:
            self.pass_on(data)
            return
        if self._arriving is None:
            plan = faults.client if self._control is None else faults.server
            self._arriving = Arriving(connection, plan, self._next_cut, super().deliver, self._end_input)
        self._arriving.add(data)

    def pass_on(self, record: Any) -> None:
        self.run_callback(super().pass_on, record)

    def deliver_for(self, adapter: Any, records: Iterator[Any]) -> None:
        within = adapter if adapter is self else Within(adapter, self.run_callback)
        super().deliver_for(within, records)

    def _next_cut(self, position: int) -> int | None:
        other = self._link.other(self)
        return None if other is None else other._bursts.cuts.after(position)

    def _end_input(self, plan: InputFaults) -> None:
        if plan.stops is not None:
            self._stop_reading()
            return
        reason: Reason = END_OF_INPUT
        if plan.resets is not None:
            reason = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            if self._link.other(self) is None:
                self.connection.abort()  # the other side does not get the reason from the link
        elif self.has_eof_handler():
            self.handle_eof(self.connection)
            return
        self._link.reason = reason
        self.connection.close()
        super().handle_close(self.connection, reason)

    def handle_eof(self, connection: Any) -> None:
        if not self._eof_handled:
            self._eof_handled = True
            self.run_callback(super().handle_eof, connection)

    def _stop_reading(self) -> None:
        connection = bottom(self)
        stop = getattr(connection, "test_stop_reading", None)
        if stop is not None:
            stop()
        else:
            connection.hold(Flag())  # never set: the end of the connection ends this wait

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.run_callback(super().handle_exception, connection, exception)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        other = self._link.other(self)
        if self._link.reason is not None and reason != STOPPED:
            reason = self._link.reason
        elif isinstance(reason, OSError) and other is not None and not other and not other._aborted:
            # The other side closed gracefully, and this side wrote after the other side had stopped reading.
            reason = END_OF_INPUT
        super().handle_close(connection, reason)
