"""Random bytes in random pieces: the result must equal the result of a few lines of Python, or be a documented error.

``pytest -m "" --hypothesis-profile=more --timeout=0 tests/test_fuzz.py`` tries many other inputs, different in each
run.
"""

from __future__ import annotations

import random
import struct

import gevent
import gevent.socket
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stages import PATIENCE, Witness
from test_echo_server import running

from ngi_gevent import LimitExceeded, testing
from ngi_gevent.adapters import Lines, Sized
from ngi_gevent.sockets.network import Network

MAX = 8
HEARTBEAT = b"\xff" * 4


def lines_in(data):
    """Return the records that ``Lines`` must deliver, and whether it then ends the connection."""
    *lines, rest = data.split(b"\n")
    for number, line in enumerate([*lines, rest]):
        if len(line) > MAX:
            return lines[:number], True
    return lines, False


def records_in(data):
    """Return the records that ``Sized`` must deliver, and whether it then ends the connection."""
    records = []
    while len(data) >= 4:
        (size,) = struct.unpack(">I", data[:4])
        data = data[4:]
        if size == 2**32 - 1:
            continue
        if size > MAX:
            return records, True
        if len(data) < size:
            break
        records.append(data[:size])
        data = data[size:]
    return records, False


def lines(chance):
    """Return bytes similar to lines, most of them not too long."""
    return b"\n".join(chance.randbytes(chance.randrange(MAX)) for _ in range(chance.randrange(12)))


def records(chance):
    """Return bytes similar to sized records, most of them not too long."""
    kinds = chance.choices(["record", "nothing", "heartbeat"], (8, 1, 1), k=chance.randrange(12))
    sizes = [chance.randrange(MAX + 1) if kind == "record" else 0 for kind in kinds]
    return b"".join(
        HEARTBEAT if kind == "heartbeat" else struct.pack(">I", size) + chance.randbytes(size)
        for kind, size in zip(kinds, sizes, strict=True)
    )


def strange(chance, sane):
    """Return the result of *sane*, or a damaged variant of it, in pieces."""
    data = bytearray(sane(chance))
    kind = chance.randrange(4)
    if kind == 0:
        data = bytearray(chance.randbytes(chance.randrange(100)))
    elif kind == 1:
        for _ in range(min(3, len(data))):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        start = chance.randrange(len(data) + 1)
        del data[start : start + chance.randrange(5)]
    cuts = sorted(chance.choices(range(len(data) + 1), k=chance.randrange(6)))
    return [bytes(data[start:end]) for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


KINDS = pytest.mark.parametrize(
    ("kind", "reference", "sane"), [(Lines, lines_in, lines), (Sized, records_in, records)], ids=["lines", "sized"]
)

PIECES = st.lists(
    st.binary(max_size=20) | st.sampled_from([b"\n", b"a\n", b"\0\0\0\1", b"\0\0\0", HEARTBEAT, b"x" * MAX])
)


def told(recorder, expected, ended):
    assert recorder.chunks == expected
    assert isinstance(recorder.closed, LimitExceeded) if ended else recorder.closed == "end of input"


def come_in_memory(kind, pieces):
    """Pass *pieces* and then the end through an adapter.  Return the recorders of the adapter's side and of the
    peer.
    """
    recorder, peer = testing.Recorder(), testing.Recorder()
    connection = testing.Connection(peer)
    kind(connection, MAX).set_handler(recorder)
    for piece in pieces:
        connection.test_input(piece)
    connection.test_close()
    return recorder, peer


@KINDS
@given(pieces=PIECES)
@example(pieces=[])
def test_random_bytes_in_pieces_in_memory(kind, reference, sane, pieces):
    recorder, peer = come_in_memory(kind, pieces)
    told(recorder, *reference(b"".join(pieces)))
    assert peer.closed == "end of input"


@pytest.mark.slow
@KINDS
def test_damaged_records_in_pieces_in_memory(kind, reference, sane):
    ended = 0
    for seed in range(5_000):
        pieces = strange(random.Random(seed), sane)
        recorder, _ = come_in_memory(kind, pieces)
        told(recorder, *reference(b"".join(pieces)))
        ended += isinstance(recorder.closed, LimitExceeded)
    assert 250 < ended < 4_750  # otherwise one of the two outcomes would hardly be tested


@pytest.mark.slow
@KINDS
def test_damaged_records_in_pieces_on_tcp(tcp, caplog, kind, reference, sane):
    """All records must arrive, on the right connection.  A well-behaved client must be answered in between."""

    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(data)

    def serve(connection):
        served = Answer(tcp)
        adapter = kind(connection, MAX)
        addresses[connection.peer_address] = served
        served.connected(adapter)

    def say(seed):
        with gevent.socket.create_connection(listener.address) as sock:
            pieces = strange(random.Random(seed), sane)
            try:
                for piece in pieces:
                    sock.sendall(piece)
                    gevent.sleep(0)
                sock.shutdown(gevent.socket.SHUT_WR)
                while sock.recv(1000):
                    pass
            except OSError:  # the server disconnected before everything was sent
                assert reference(b"".join(pieces))[1]
            address = sock.getsockname()
            # This must come before the close, because later another client can get the same port.
            tcp.until(lambda: address in addresses and addresses[address].closed)
        told(addresses.pop(address), *reference(b"".join(pieces)))

    addresses = {}
    listener = tcp.listen(serve)
    for start in range(0, 2000, 20):
        crowd = [gevent.spawn(say, seed) for seed in range(start, start + 20)]
        gevent.joinall(crowd, timeout=PATIENCE, raise_error=True)
        assert all(greenlet.successful() for greenlet in crowd)
    assert addresses == {}
    assert caplog.records == []


@pytest.mark.parametrize("crowds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_random_bytes_at_the_echo_server(crowds):
    """Whatever others do, a client that sends everything and waits gets a full answer.  The server prints nothing, and
    ends gracefully.
    """

    def say(seed):
        chance = random.Random(seed)
        data = chance.randbytes(chance.choice([0, 1, 10, 1000, 100_000, 1_000_000]))
        behaviour = chance.choice(["waits", "waits", "goes", "resets"])
        with gevent.socket.create_connection((host, int(port))) as sock:
            reading = gevent.spawn(receive, sock) if behaviour == "waits" else None
            left = data
            while left and (reading or chance.random() < 0.7):  # other clients disconnect early, and never read
                size = chance.choice([7, 1000, 100_000, 1_000_000])
                sock.sendall(left[:size])
                left = left[size:]
            if behaviour == "resets":
                Network().reset_on_close(sock)
            if reading:
                sock.shutdown(gevent.socket.SHUT_WR)
                assert reading.get(timeout=PATIENCE) == data.upper()
                answered.append(seed)

    def receive(sock):
        return b"".join(iter(lambda: sock.recv(1 << 20), b""))

    answered: list[int] = []
    with running() as server:
        host, port = server.address.split(":")
        for start in range(0, 30 * crowds, 30):
            crowd = [gevent.spawn(say, seed) for seed in range(start, start + 30)]
            gevent.joinall(crowd, timeout=PATIENCE, raise_error=True)
            assert all(greenlet.successful() for greenlet in crowd)
        assert len(answered) > 10 * crowds
        server.stop()
        assert server.end() == (0, "stopped, ending 0 connections\n", "")
