"""Clients that keep an echo server busy: plain blocking sockets in threads, which compare every byte they receive."""

from __future__ import annotations

import random
import socket
import threading
import time
from typing import Any

__all__ = ["Load"]

#: Each request is a piece of this from a random position.  An answer with lost, doubled or moved bytes differs from it.
TEXT = b"".join(b"%d of the words that are sent " % number for number in range(40_000))
ANSWER = TEXT.upper()


class Load:
    """Clients that make requests one after the other until the server refuses connections.

    Some make a few requests on each connection; others make one large request, and read slowly.  If *stay* is true,
    some stay on one connection for as long as the server allows.

    :ivar answered: requests that were answered, byte for byte.
    :ivar refused: connections that were reset before the first byte of an answer, as if they had been refused.  This
        can happen to a client that connects at the moment when the server's socket is closed.
    :ivar wrong: errors: answers that were wrong, incomplete or missing.
    :ivar ended: when the clients that stay were disconnected, as ``time.monotonic`` returns it.
    """

    def __init__(self, address: Any, *, clients: int = 6, slow: int = 2, stay: int = 0) -> None:
        self.address = address
        self.answered = 0
        self.refused = 0
        self.wrong: list[str] = []
        self.ended: list[float] = []
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=client, args=[seed], daemon=True)
            for client, count in ((self._few, clients), (self._slow, slow), (self._stay, stay))
            for seed in range(count)
        ]
        self.began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def wait_for(self, answered: int) -> None:
        """Wait until *answered* requests have been answered, or an error has occurred."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.answered >= answered or self.wrong, 60)

    def join(self) -> None:
        """Wait until all clients have ended."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _count(self, **changes: Any) -> None:
        with self._changed:
            for name, value in changes.items():
                setattr(self, name, getattr(self, name) + value)
            self._changed.notify_all()

    def _connected(self) -> socket.socket | None:
        sock = socket.socket()
        sock.settimeout(30)
        try:
            sock.connect(self.address)
        except (ConnectionRefusedError, ConnectionResetError):
            sock.close()
            return None
        return sock

    def _few(self, seed: int) -> None:
        chance = random.Random(seed)
        going_on = True
        while going_on and (sock := self._connected()):
            with sock:
                for number in range(chance.choice([1, 1, 2, 5])):
                    going_on = going_on and self._request(sock, chance.choice([10, 1000, 100_000]), chance, number == 0)

    def _slow(self, seed: int) -> None:
        chance = random.Random(seed)
        going_on = True
        while going_on and (sock := self._connected()):
            with sock:
                going_on = self._request(sock, 500_000, chance, True, pause=0.002)

    def _stay(self, seed: int) -> None:
        chance = random.Random(seed)
        sock = self._connected()
        assert sock is not None
        with sock:
            while self._request(sock, chance.choice([10, 1000, 100_000]), chance, False, may_end=True):
                pass
        self.ended.append(time.monotonic())

    def _request(
        self,
        sock: socket.socket,
        size: int,
        chance: random.Random,
        first: bool,
        *,
        pause: float = 0,
        may_end: bool = False,
    ) -> bool:
        """Make a request of *size* bytes.  Return whether it was answered."""
        start = chance.randrange(len(TEXT) - size)
        expected = ANSWER[start : start + size]
        received = bytearray()
        errors: list[OSError] = []  # errors in the two threads

        def send() -> None:
            try:
                sock.sendall(TEXT[start : start + size])
            except OSError as error:
                errors.append(error)

        def receive() -> None:
            try:
                while len(received) < size and (data := sock.recv(65536)):
                    received.extend(data)
                    time.sleep(pause)
            except OSError as error:
                errors.append(error)

        if size > 100_000:  # more than the kernels accept before the client reads
            sending = threading.Thread(target=send, daemon=True)
            sending.start()
            receive()
            sending.join()
        else:
            send()
            receive()
        if received == expected:
            self._count(answered=1)
            return True
        if not expected.startswith(received):
            self._count(wrong=[f"another answer than expected to a request of {size} bytes"])
        elif may_end:
            pass
        elif first and not received and errors:
            self._count(refused=1)
        else:
            self._count(wrong=[f"{errors or 'the end'} after {len(received)} of {size} bytes"])
        return False
