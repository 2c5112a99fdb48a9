"""The feeder closes each iterable that it does not exhaust, once, on a greenlet that can block.

The interpreter closes freed generators, but not other iterators.
"""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from stages import Witness, end_by


class Closable:
    """An iterator that yields *items*, then waits forever.  Its ``close`` blocks for a moment, and then raises *error*,
    if any.
    """

    def __init__(self, stage, closed, *items, error=None):
        self.stage, self.closed, self.items, self.error = stage, closed, list(items), error

    def __iter__(self):
        return self

    def __next__(self):
        if not self.items:
            Event().wait()
        return self.items.pop(0)

    def close(self):
        gevent.sleep(0)
        self.closed.append(self)
        self.stage.happened()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("end", ["abort", "stop", "reset"])
def test_discarded_iterables_are_closed(tcp, end, caplog):
    """The feeder waits for the first, and has not started the others.  One ``close`` raises; the rest are closed as
    well.
    """
    peer = tcp.peer(tcp.listen())
    peer.read()
    tcp.until(lambda: tcp.served)
    connection, closed = tcp.served[0].connection, []
    iterables = [
        Closable(tcp, closed, b"first"),
        Closable(tcp, closed, error=ValueError("cannot be closed")),
        Closable(tcp, closed, b"never"),
    ]
    for iterable in iterables:
        connection.writelines(iterable)
    tcp.until(lambda: peer.received == b"first")
    end_by(end, tcp, connection, peer)
    tcp.until(lambda: len(closed) == 3)
    assert closed == iterables
    tcp.until(lambda: connection._lifecycle.is_gone())
    assert [record.exc_info[1] for record in caplog.records] == [iterables[1].error]


def test_an_iterable_that_yields_other_objects_than_bytes_is_closed(tcp):
    class Server(Witness):
        def handle_exception(self, connection, exception):
            super().handle_exception(connection, exception)
            connection.write(b"then")

    peer = tcp.peer(tcp.listen(Server))
    peer.read()
    tcp.until(lambda: tcp.served)
    served, closed = tcp.served[0], []
    iterable = Closable(tcp, closed, b"first ", "text")
    served.connection.writelines(iterable)
    tcp.until(lambda: closed and peer.received == b"first then")
    assert closed == [iterable]
    assert [type(exception) for exception in served.exceptions] == [TypeError]
