"""Names that several files of rules share."""

from __future__ import annotations

import logging

from ngi_gevent.testing.contract.stage import Witness

__all__ = ["MEGABYTE", "MUCH", "Echo", "Failure", "tracebacks"]

MEGABYTE = 1 << 20

#: More than any kernel takes for a peer that does not read.
MUCH = 16 * MEGABYTE


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


class Failure(Exception):
    """What handlers in these tests raise."""


def tracebacks(caplog, error=None):
    """The logged errors that have a traceback (of *error*)."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.ERROR and record.exc_info and error in (None, record.exc_info[1])
    ]
