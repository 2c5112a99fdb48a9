"""Names that several files of rules share."""

from __future__ import annotations

import logging

import pytest

from ngi_gevent.testing.contract.witness import DatagramWitness, Witness

__all__ = ["MEGABYTE", "MUCH", "Echo", "Failure", "both_ways", "sender", "tracebacks"]

MEGABYTE = 1 << 20

#: More than a kernel accepts for a peer that does not read. Linux accepts 4 MiB, and 128 KiB on the other side.
MUCH = 8 * MEGABYTE


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


class Failure(Exception):
    """The exception that handlers in these tests raise."""


def tracebacks(caplog, error=None):
    """The logged errors that have a traceback of *error*."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.ERROR and record.exc_info and error in (None, record.exc_info[1])
    ]


#: The two ways to send a datagram.
both_ways = pytest.mark.parametrize("way", ["udp", "send"])


def sender(stage, way):
    """The function that sends a datagram in the given *way*."""
    return stage.implementation.udp if way == "udp" else stage.listen_udp(DatagramWitness(stage)).send
