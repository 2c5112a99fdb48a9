"""What the servers send and count, whichever library they are written with; the load expects the same."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from itertools import cycle
from typing import TypeVar

CHUNK = 64 * 1024

#: The bytes that all data consists of, again and again: 17 chunks, so that one in the wrong place is noticed.
PATTERN = hashlib.shake_128(b"ngi_gevent").digest(17 * CHUNK)

#: A size, as requests and receipts have it.
SIZE = struct.Struct(">Q")

#: What is written in answer to one request of the burst.
BURST = [PATTERN[start : start + 64] for start in range(0, 64_000, 64)]

#: A message that is not in the pattern: see ``servers.ngi.Connections``.
TIME_CONNECTIONS = b"the time of connections()"

_CHUNKS = [PATTERN[start : start + CHUNK] for start in range(0, len(PATTERN), CHUNK)]

T = TypeVar("T")


def stream(request: bytes) -> Iterator[bytes]:
    """The stream that *request* asks for, in chunks that are there already, so that making them takes no time."""
    (left,) = SIZE.unpack(request)
    for chunk in cycle(_CHUNKS):
        if left <= CHUNK:
            yield chunk[:left]
            return
        yield chunk
        left -= CHUNK


class Receipt:
    """The count of what is received of one stream."""

    def __init__(self) -> None:
        self._missing: int | None = None
        self._size = 0

    def count(self, data: bytes) -> bytes | None:
        """Count *data*; the answer, if that was the end of the stream."""
        if self._missing is None:
            self._size = self._missing = SIZE.unpack_from(data)[0]
            self._missing -= len(data) - SIZE.size
        else:
            self._missing -= len(data)
        return None if self._missing > 0 else SIZE.pack(self._size - self._missing)


def chosen(works: dict[str, T]) -> T:
    """Of *works*, the one that the command line names."""
    return works[sys.argv[1]]


def announce(port: int) -> None:
    """Say that the server accepts connections, and where."""
    print("ready", port, flush=True)
