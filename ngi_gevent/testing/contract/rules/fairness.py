"""Rules for fairness: no connection waits long for another's work, and output does not wait for a callback's end."""

from __future__ import annotations

import gevent

from ngi_gevent import adapters, blocking
from ngi_gevent.testing.contract.rules.common import MEGABYTE
from ngi_gevent.testing.contract.witness import Witness

# Rule 16: no connection waits for another's work.


def test_a_connection_with_many_records_lets_others_run(stage):
    class Busy(Witness):
        def connected(self, connection):
            super().connected(adapters.Lines(connection))

        def handle_input(self, connection, data):
            delivered.append(data)
            stage.compute()
            if data:
                connection.write(b"%d" % len(delivered))
            if len(delivered) > count:
                stage.happened()

    count, delivered = 60_000, []
    listener = stage.listen(Busy)
    busy, honest = stage.client(listener), stage.client(listener)
    stage.until(lambda: len(stage.served) == 2)
    busy.connection.write(b"\n" * count)
    honest.connection.write(b"x\n")
    stage.until(lambda: honest.data)
    if not stage.at_once:
        assert int(honest.data) < count // 2
    stage.until(lambda: len(delivered) == count + 1)


def test_a_reader_of_many_lines_lets_others_run(stage):
    lines = []

    @blocking.server
    def read(input, output):
        for line in input:
            lines.append(line)
            stage.compute()
            if line != b"\n":
                output.write(b"%d" % len(lines))
        stage.happened()

    count = 60_000
    listener = stage.listen(read)
    busy, honest = stage.client(listener), stage.client(listener)
    busy.connection.write(b"\n" * count)
    honest.connection.write(b"x\n")
    while stage.at_once and not honest.data:
        gevent.idle()  # the functions run on greenlets, even in memory
    stage.until(lambda: honest.data)
    assert int(honest.data) < count // 2


# Rule 10: output is sent once enough is pending.


def test_a_large_write_is_sent_before_the_callback_returns(stage):
    pending = []

    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 131072)
            pending.append(connection.output_pending)
            super().handle_input(connection, data)

    client, _ = stage.talk(Long)
    client.connection.write(b"?")
    stage.until(lambda: client.size == 131072)
    assert pending < [131072]


def test_the_output_of_a_long_callback_is_sent_before_its_end(stage):
    pending = []

    class Long(Witness):
        def handle_input(self, connection, data):
            for _ in range(64):
                connection.write(b"x" * 16384)
                pending.append(connection.output_pending)
            super().handle_input(connection, data)

    client, served = stage.talk(Long)
    client.connection.write(b"?")
    stage.until(lambda: client.size == MEGABYTE)
    assert min(pending[4:]) < 65536


__all__ = [name for name in dir() if name.startswith("test_")]
