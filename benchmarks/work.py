"""The data that servers send and count, independent of the library. The load expects the same."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from itertools import cycle
from typing import TypeVar

CHUNK = 64 * 1024

#: All data repeats these bytes. They have 17 chunks, so that a misplaced chunk is detected.
PATTERN = hashlib.shake_128(b"ngi_gevent").digest(17 * CHUNK)

#: The encoding of a size, in requests and receipts.
SIZE = struct.Struct(">Q")

#: The pieces that answer one request of the burst.
BURST = [PATTERN[start : start + 64] for start in range(0, 64_000, 64)]

#: A message that is not in the pattern: see ``servers.ngi.Connections``.
TIME_CONNECTIONS = b"the time of connections()"

_CHUNKS = [PATTERN[start : start + CHUNK] for start in range(0, len(PATTERN), CHUNK)]

T = TypeVar("T")


def stream(request: bytes) -> Iterator[bytes]:
    """The stream that *request* asks for, in prepared chunks, so that making them takes no time."""
    (left,) = SIZE.unpack(request)
    for chunk in cycle(_CHUNKS):
        if left <= CHUNK:
            yield chunk[:left]
            return
        yield chunk
        left -= CHUNK


class Receipt:
    """A counter for the input of one stream."""

    def __init__(self) -> None:
        self._missing: int | None = None
        self._size = 0

    def count(self, data: bytes) -> bytes | None:
        """Count *data*. Return the answer if that was the end of the stream."""
        if self._missing is None:
            self._size = self._missing = SIZE.unpack_from(data)[0]
            self._missing -= len(data) - SIZE.size
        else:
            self._missing -= len(data)
        return None if self._missing > 0 else SIZE.pack(self._size - self._missing)


def chosen(works: dict[str, T]) -> T:
    """Return the one of *works* that the command line names."""
    return works[sys.argv[1]]


def announce(port: int) -> None:
    """Report that the server accepts connections, and on which port."""
    print("ready", port, flush=True)
