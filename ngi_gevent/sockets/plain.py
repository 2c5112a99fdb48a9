"""The transport without TLS: the calls of a gevent socket that never wait, and what the kernel knows about it."""

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

#: Bytes to receive at a time.  That is enough for a stream not to be dominated by calls.  Allocating from 128 KiB on
#: would map memory each time.
RECEIVE_SIZE = 64 * 1024

#: Flag for sending.  Without it, a peer that has gone would end a program in which SIGPIPE has its default effect.
#: Callers pass it, since a function around the socket's ``send`` would be one more call for each message.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))  # macOS has none

#: Takes one of the calls that receive or send, and returns the call to make instead.
WrapCall = Callable[[Callable[..., Any]], Callable[..., Any]]


class Transport(Protocol):
    """The way of a connection's bytes to and from its peer.  Nothing in it blocks."""

    #: Whether receiving or sending has left something to do: see ``take_events``.
    has_events: bool

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Receives at most so many bytes, as ``recv`` of a non-blocking socket."""

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
        """Clear ``has_events``.  Return whether ``send`` is to be called, with an empty piece if nothing else."""

    def has_buffered_input(self) -> bool:
        """Return whether ``recv`` would return something though the socket does not become readable for it."""

    def waits_for_input(self) -> bool:
        """Return whether nothing can be sent until something is received, though the socket is writable."""

    def make_last_words(self) -> bool:
        """Make the message that ends the output, once.  Return True if ``send`` is to be called for it."""

    def end_output(self, *, closes: bool) -> None:
        """End the output for the peer.  Raises ``OSError``.

        :param closes: whether ``close`` follows at once, which ends it, too.
        """

    def drop_output(self, some: bool) -> None:
        """Note that output is dropped, if there is *some*: the peer must not take what it has for everything."""

    def reset(self) -> None:
        """Make ``close`` reset the connection."""

    def close(self) -> None:
        """Close the descriptor.  The peer sees the end, also if a forked child holds the descriptor."""

    def leave_to_parent(self) -> None:
        """Close the descriptor, and nothing else, in a forked child."""

    def wrap_calls(self, wrap: WrapCall) -> None:
        """Replace the calls that receive and send ciphertext, or plaintext without TLS."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def getsockname(self) -> Any:
        """Return the address of this side.  Raises ``OSError``."""

    def queued_output(self) -> int:
        """Return how many bytes the kernel has that the peer has not acknowledged; 0 after ``close``."""

    def traffic(self, input_has_ended: bool) -> tuple[int, int]:
        """Return how many bytes of ciphertext, or of plaintext without TLS, were received and sent; 0 after ``close``.

        :param input_has_ended: whether the end of input was received.
        """

    def has_input(self) -> bool:
        """Return whether the kernel has input, or the end of it."""

    def is_broken(self) -> bool:
        """Return whether the connection has an error, or has ended in both directions."""

    def has_error(self) -> bool:
        """Return whether the connection has an error."""

    def take_error(self) -> OSError:
        """Return that error, once."""

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
        self._children = forks.children()  # those that cannot hold the descriptor

    def sendmsg(self, pieces: list[Piece]) -> int:
        # Not kept, as recv and send are: most connections never need it, and each would pay 72 bytes for it.
        call: Callable[..., int] = self._network.plain(self.socket).sendmsg
        return (call if self._wrap is None else self._wrap(call))(pieces, (), NO_SIGNAL)

    def peek(self, size: int) -> bytes:
        """Return input, at most so many bytes, and leave it to the kernel.  Raises as ``recv``."""
        return self._network.plain(self.socket).recv(size, socket.MSG_PEEK)

    def take_events(self) -> bool:
        return False

    def has_buffered_input(self) -> bool:
        return False

    def waits_for_input(self) -> bool:
        return False

    def make_last_words(self) -> bool:
        return False

    def end_output(self, *, closes: bool) -> None:
        # A child that holds the descriptor too would hide the close.
        if not closes or self._children != forks.children():
            self.socket.shutdown(socket.SHUT_WR)
            self._has_finished = True
        self._is_ended = True

    def drop_output(self, some: bool) -> None:
        """Dropped output needs no note: the end or reset of the socket says enough."""

    def reset(self) -> None:
        self._network.reset_on_close(self.socket)
        # A child that holds the descriptor too would hide the reset, so the peer sees an end instead.
        self._is_ended = self._children == forks.children()

    def close(self) -> None:
        if not self._is_ended:
            with suppress(OSError):  # it may be broken
                self.socket.shutdown(socket.SHUT_RDWR)  # a child that holds the descriptor too would hide the end
        self._network.close(self.socket)
        self.recv = self.send = _is_closed
        self._wrap = None  # it may hold the connection

    def leave_to_parent(self) -> None:
        self._is_ended = True  # for the parent to do
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
        except (OSError, ValueError):  # another thread has asked, and it was closed since
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
    """Take the place of the calls of a closed socket, which must not reach a later one with the same descriptor."""
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
