"""Connections as pairs of files, with their peers, for the tests of ``ngi_gevent.blocking``."""

from __future__ import annotations

from stages import PATIENCE, SocketStage

from ngi_gevent import blocking

TEXT = b"one\ntwo words\n\nthe rest"
LINES = [b"one\n", b"two words\n", b"\n", b"the rest"]

#: Bytes: more than the kernel buffers for a peer that does not read, and less than an output_limit.
MUCH = 8 * 1024 * 1024

PIECE = 64 * 1024


def talk(stage, adapter=lambda connection: connection, **options):
    """Return the output and input files of a server's connection, and its peer, which does not use NGI."""
    opened = []

    def serve(connection):
        stage.connections.append(connection)
        opened.append(blocking.open(adapter(connection)))
        stage.happened()

    peer = stage.peer(stage.listen(serve, **options))
    stage.until(lambda: opened)
    return (*opened.pop(), peer)


def talk_openly(stage):
    """Return the pairs of files of a client and of its server."""
    opened = []

    def serve(connection):
        stage.connections.append(connection)
        opened.append(blocking.open(connection))
        stage.happened()

    client = blocking.open(stage.listen(serve).address, stage.implementation.connect, timeout=PATIENCE)
    stage.until(lambda: opened)
    return client, opened.pop()


def break_off(stage, output, peer):
    """Make *peer* reset the connection."""
    output.write(b"unread")  # a Unix socket is reset only if it has unread input
    if isinstance(stage, SocketStage):
        output.flush(PATIENCE)
    peer.reset()


def read_all(read, *arguments):
    """Call *read* until it returns no data, and return the list of its results."""
    return list(iter(lambda: read(*arguments, timeout=PATIENCE), b""))
