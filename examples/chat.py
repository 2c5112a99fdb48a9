"""A chat room: each line from a client goes to all clients.

    python examples/chat.py
    nc 127.0.0.1 8000                   (in two terminals or more)

A broadcast does not wait for clients that read slowly, or not at all.  The listener's ``output_limit`` bounds the
output that is stored for each.  At the limit, that client's connection ends, and the others continue.
"""

from __future__ import annotations

import argparse
import signal

import gevent

import ngi_gevent
from ngi_gevent.adapters import Lines
from ngi_gevent.interfaces import IListener, IServerConnection, Reason

#: Bytes that are stored for one guest, in addition to the kernel's buffers.
OUTPUT_LIMIT = 64 * 1024


def tell(room: IListener, text: str) -> None:
    """Send a line to all guests."""
    line = f"{text}\n".encode()
    for connection in room.connections():  # the connections that are open now, even if some end during the loop
        connection.write(line)


class Guest:
    """One connection; the server is this class."""

    def __init__(self, connection: IServerConnection) -> None:
        self.room = connection.control
        self.name = f"guest {connection.peer_address[1]}"
        Lines(connection, max_line=1000).set_handler(self)
        tell(self.room, f"{self.name} is here")

    def handle_input(self, connection: Lines, data: bytes) -> None:
        text = data.decode(errors="replace")
        # Other characters are removed, since they could control the terminals of other guests.
        tell(self.room, f"{self.name}: {''.join(filter(str.isprintable, text))}")

    def handle_close(self, connection: Lines, reason: Reason) -> None:
        tell(self.room, f"{self.name} is gone: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    listener = ngi_gevent.listener(("127.0.0.1", options.port), Guest, output_limit=OUTPUT_LIMIT)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
