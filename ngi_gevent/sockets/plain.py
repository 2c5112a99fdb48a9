"""The transport without TLS: the non-blocking calls of a gevent socket, and queries to the kernel about it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from ngi_gevent.core import forks
from ngi_gevent.core.lifecycle import END_OF_INPUT
from ngi_gevent.core.output import Piece
from ngi_gevent.sockets.network import Network, Socket

__all__ = ["NO_SIGNAL", "RECEIVE_SIZE", "PlainTransport", "Transport", "WrapCall"]

#: Bytes to receive at a time.  With this size, system calls do not dominate the cost of a stream.  Allocations of 128
#: KiB or more would map memory each time.
RECEIVE_SIZE = 64 * 1024

#: The flag for sending.  Without it, a peer that has gone would end a program that has SIGPIPE's default handler.
#: Callers pass it, because a function around the socket's ``send`` would cost one more call for each message.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))  # missing on macOS

#: A function that wraps one of the calls that receive or send.
WrapCall = Callable[[Callable[..., Any]], Callable[..., Any]]


class Transport(Protocol):
    """The path of a connection's bytes to and from its peer.  Its methods do not block."""

    #: Whether ``take_events`` must be called after receiving or sending.
    has_events: bool

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Receives up to a number of bytes, as ``recv`` of a non-blocking socket."""

    @property
    def send(self) -> Callable[[Piece, int], int]:
        """Sends a piece, as ``send`` of a non-blocking socket.  The second argument is always ``NO_SIGNAL``."""

    def sendmsg(self, pieces: list[Piece]) -> int:
        """Send several pieces, as ``sendmsg`` of a non-blocking socket."""

    @property
    def ssl_object(self) -> Any:
        """The ``ssl.SSLObject``; None without TLS."""

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        """The process, user and group of the peer; None if it is unknown."""

    @property
    def end_reason(self) -> Any:
        """The reason for ``handle_close`` after ``recv`` returned ``b''``."""

    def take_events(self) -> bool:
        """Clear ``has_events``.  Return whether ``send`` must be called, if only with an empty piece."""

    def has_buffered_input(self) -> bool:
        """Return whether ``recv`` has input for which the socket does not become readable."""

    def waits_for_input(self) -> bool:
        """Return whether sending must wait for input, although the socket is writable."""

    def make_end_message(self) -> bool:
        """Make the message that ends the output, once.  Return True if ``send`` must be called to send it."""

    def end_output(self, *, closes: bool) -> None:
        """End the output for the peer.  Raises ``OSError``.

        :param closes: whether ``close`` follows at once, which also ends the output.
        """

    def drop_output(self, some: bool) -> None:
        """Note that output is dropped if *some* is true, so that the peer does not mistake a part for everything."""

    def reset(self) -> None:
        """Make ``close`` reset the connection."""

    def close(self) -> None:
        """Close the descriptor.  The peer sees the end even if a forked child has the descriptor."""

    def leave_to_parent(self) -> None:
        """Only close the descriptor, in a forked child."""

    def wrap_calls(self, wrap: WrapCall) -> None:
        """Replace the calls that receive and send ciphertext, or plaintext without TLS."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def getsockname(self) -> Any:
        """Return the address of this side.  Raises ``OSError``."""

    def queued_output(self) -> int:
        """Return how many bytes in the kernel the peer has not acknowledged; 0 after ``close``."""

    def traffic(self, input_has_ended: bool) -> tuple[int, int]:
        """Return how many bytes of ciphertext, or of plaintext without TLS, were received and sent; 0 after ``close``.

        :param input_has_ended: whether the end of input was received.
        """

    def has_input(self) -> bool:
        """Return whether the kernel has input, or its end."""

    def is_broken(self) -> bool:
        """Return whether the connection has an error, or has ended in both directions."""

    def has_error(self) -> bool:
        """Return whether the connection has an error."""

    def take_error(self) -> OSError:
        """Remove and return the error of the connection."""

    def peer_has_finished(self) -> bool:
        """Return whether the peer has finished sending, also if there is still input to receive."""


class PlainTransport:
    """A gevent socket, without TLS."""

    __slots__ = (
        "_children",
        "_has_finished",
        "_is_ended",
        "_network",
        "_wrap",
        "has_events",
        "peer_credentials",
        "recv",
        "send",
        "socket",
    )

    ssl_object = None
    end_reason = END_OF_INPUT

    def __init__(self, network: Network, sock: Socket) -> None:
        self._network = network
        self.socket = sock
        plain = network.plain(sock)
        self.recv: Callable[[int], bytes] = plain.recv
        self.send: Callable[[Piece, int], int] = plain.send
        self.has_events = False
        self.peer_credentials = network.peer_credentials(sock)
        self._wrap: WrapCall | None = None
        self._has_finished = False  # whether the kernel has the end of output
        self._is_ended = False  # whether the peer sees the end of output without a shutdown
        self._children = forks.children()  # children so far, which do not have the descriptor

    def sendmsg(self, pieces: list[Piece]) -> int:
        # Not kept like recv and send, because most connections never need it, and it would cost each of them 72 bytes.
        call: Callable[..., int] = self._network.plain(self.socket).sendmsg
        return (call if self._wrap is None else self._wrap(call))(pieces, (), NO_SIGNAL)

    def peek(self, size: int) -> bytes:
        """Return up to *size* bytes of input, and leave them in the kernel.  Raises as ``recv``."""
        return self._network.plain(self.socket).recv(size, socket.MSG_PEEK)

    def take_events(self) -> bool:
        return False

    def has_buffered_input(self) -> bool:
        return False

    def waits_for_input(self) -> bool:
        return False

    def make_end_message(self) -> bool:
        return False

    def end_output(self, *, closes: bool) -> None:
        # A child that also has the descriptor would hide the close.
        if not closes or self._children != forks.children():
            self.socket.shutdown(socket.SHUT_WR)
            self._has_finished = True
        self._is_ended = True

    def drop_output(self, some: bool) -> None:
        """Do nothing, because the socket's end or reset shows it."""

    def reset(self) -> None:
        self._network.reset_on_close(self.socket)
        # A child that also has the descriptor would hide the reset, so the peer sees an end instead.
        self._is_ended = self._children == forks.children()

    def close(self) -> None:
        if not self._is_ended:
            with suppress(OSError):  # it may be broken
                self.socket.shutdown(socket.SHUT_RDWR)  # a child that also has the descriptor would hide the end
        self._network.close(self.socket)
        self.recv = self.send = _is_closed
        self._wrap = None  # it may have a reference to the connection

    def leave_to_parent(self) -> None:
        self._is_ended = True  # the parent ends the connection
        self.close()

    def wrap_calls(self, wrap: WrapCall) -> None:
        self._wrap = wrap
        self.recv, self.send = wrap(self.recv), wrap(self.send)

    def fileno(self) -> int:
        return self.socket.fileno()

    def getsockname(self) -> Any:
        return self.socket.getsockname()

    def queued_output(self) -> int:
        return 0 if self.recv is _is_closed else self._network.queued_output(self.socket)

    def traffic(self, input_has_ended: bool) -> tuple[int, int]:
        if self.recv is _is_closed:
            return 0, 0
        try:
            return self._network.traffic(self.socket, (input_has_ended, self._has_finished))
        except (OSError, ValueError):  # called by another thread, and closed in between
            return 0, 0

    def has_input(self) -> bool:
        return self._network.has_input(self.socket)

    def is_broken(self) -> bool:
        return self._network.is_broken(self.socket)

    def has_error(self) -> bool:
        return self._network.has_error(self.socket)

    def take_error(self) -> OSError:
        return self._network.take_error(self.socket)

    def peer_has_finished(self) -> bool:
        return self._network.peer_has_finished(self.socket)


def _is_closed(*_: object) -> Any:
    """Replace the calls of a closed socket, so that they cannot reach a later socket with the same descriptor."""
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
