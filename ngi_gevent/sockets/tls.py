"""The transport with TLS: bytes are encrypted on their way to the socket, with any ``ssl.SSLContext``.

The context, of the standard library or of gevent, makes an ``ssl.SSLObject`` between two buffers in memory, so its
calls cannot block.  ``recv`` and ``send`` behave as on a socket without TLS, with two differences:

* One piece of ciphertext can hold more than one ``recv`` returns: input and the end of input, or input behind the end
  of the handshake.  The socket does not become readable for the rest, so callers must check ``has_buffered_input``.
* TLS has its own messages, so receiving can make output (``has_events``), and sending may have to wait for input
  (``waits_for_input``).

Plaintext stays in the connection's ``OutputQueue``, and counts as pending, until the kernel has taken its ciphertext.

This module is imported when a context is given, and not before.
"""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from ngi_gevent.core import logs
from ngi_gevent.core.lifecycle import END_OF_INPUT
from ngi_gevent.core.output import Piece
from ngi_gevent.sockets.plain import NO_SIGNAL, RECEIVE_SIZE, PlainTransport, WrapCall

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["OWN_LIMIT", "MakeSSLObject", "TLSTransport"]

#: The largest size of a TLS record, in bytes.
RECORD_SIZE = 16 * 1024

#: Bytes to encrypt for one system call.  Those that the kernel does not take are in memory twice.
ENCRYPT_SIZE = 64 * 1024

#: Bytes of TLS's own messages that can wait for a peer, enough to answer two pieces of input.
OWN_LIMIT = 2 * RECEIVE_SIZE

#: The option of a context to accept an end without a close_notify as an end of input.  Only OpenSSL 3 has it.
IGNORE_UNEXPECTED_EOF: int = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

MakeSSLObject = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]


class TLSTransport:
    """A gevent socket with TLS, which sends and receives through a ``PlainTransport``."""

    __slots__ = (
        "_ciphertext",
        "_close_sent",
        "_decrypted",
        "_encrypted",
        "_end",
        "_incoming",
        "_outgoing",
        "_plain",
        "_refuses",
        "_stalled",
        "has_events",
        "ssl_object",
    )

    hint_if_late: ClassVar = "; does it use TLS?"

    ssl_object: Any

    def __init__(self, plain: PlainTransport, make: MakeSSLObject) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = make(self._incoming, self._outgoing)
        # The only use of a private attribute of gevent's contexts, whose callbacks get the SSLObject from it.
        self.ssl_object._sslsock = weakref.ref(self.ssl_object)
        self.has_events = False
        self._end: ssl.SSLError | bytes | None = None  # how the input ended, set once it is all returned
        self._decrypted = b""  # input that was decrypted before recv was called
        self._ciphertext: Piece = b""  # the part that the kernel has not taken
        self._encrypted = 0  # bytes of plaintext in _ciphertext
        self._stalled = False  # whether output waits for input
        self._refuses = False  # whether the handshake has failed
        self._close_sent = False  # whether the close_notify is sent, or must not be sent

    def send_first(self, data: bytes) -> None:
        """Send *data* unencrypted, before the handshake."""
        self._outgoing.write(data)

    def feed(self, received: bytes) -> None:
        """Take input that was *received* on an open connection before TLS began."""
        self._incoming.write(received)

    def begin_behind(self, unsent: bytes) -> None:
        """Send *unsent*, the pending output of an open connection, unencrypted, before everything else."""
        self._ciphertext, self._encrypted = unsent, len(unsent)

    @property
    def socket(self) -> Any:
        """The gevent socket."""
        return self._plain.socket

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        return self._plain.peer_credentials

    @property
    def end_reason(self) -> Any:
        if self._end is None:  # the peer sent no close_notify
            return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the connection without ending TLS")
        return END_OF_INPUT

    # The handshake.

    def shake_hands(self) -> bool:
        """Continue the handshake.  Return whether it is done; otherwise it needs input.

        :raises ssl.SSLError: the handshake failed.
        """
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._refuse()
            raise
        finally:
            self.has_events = True
        return True

    def receive_in_handshake(self, size: int) -> bool:
        """Receive for the handshake.  Return whether there was input.

        :raises OSError: the connection broke, or ended.
        """
        try:
            data = self._plain.recv(size)
        except BlockingIOError:
            return False
        if not data:
            self._refuse()
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the connection in the TLS handshake")
        self._incoming.write(data)
        return True

    def answers(self, error: BaseException) -> bool:
        """Return whether pending output reports *error*, with which the handshake failed, to the peer."""
        return isinstance(error, ssl.SSLError)

    def log_failure(self, peer: Any, reason: Reason, limit: logs.RateLimit | None) -> None:
        """Log that the handshake with the client *peer* failed, for *reason*."""
        logs.connections.info(
            "connection with %r: the TLS handshake failed: %s", peer, logs.format_reason(reason), limit=limit
        )

    def _refuse(self) -> None:
        """Note that the handshake has failed.  The alert is the last message, and input is not decrypted."""
        self._close_sent = self._refuses = True

    # Input.

    def recv(self, size: int) -> bytes:
        """Return everything that one piece of ciphertext holds, as ``recv`` of a non-blocking socket."""
        if self._refuses:
            return self._plain.recv(size)  # discarded, so that the peer receives the alert
        if self._decrypted:
            data, self._decrypted = self._decrypted, b""
            return data
        if self._end is not None:
            return self._eof_or_error()
        if not self._incoming.pending:
            data = self._plain.recv(size)
            if not data:
                if self.ssl_object.context.options & IGNORE_UNEXPECTED_EOF:
                    self._end = data
                return data
            self._incoming.write(data)
        pieces = self._records()
        if self._outgoing.pending > OWN_LIMIT:
            self._end = ssl.SSLError(ssl.SSL_ERROR_SSL, "the peer requests answers of TLS without reading them")
        self.has_events = bool(self._outgoing.pending or self._stalled or self._end is not None)
        if not pieces:
            if self._end is None:
                raise BlockingIOError
            return self._eof_or_error()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _records(self) -> list[bytes]:
        """Decrypt what was received."""
        read = self.ssl_object.read
        incoming = self._incoming
        pieces = []
        try:
            while True:
                piece = read(RECORD_SIZE)
                if not piece:
                    self._end = piece
                    break
                pieces.append(piece)
                if not incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the end of input, if this side has ended its output before
            self._end = b""
        except ssl.SSLError as error:
            self._end = error
        return pieces

    def _eof_or_error(self) -> bytes:
        if isinstance(self._end, ssl.SSLError):
            if not self._ciphertext:
                with suppress(OSError):
                    self._plain.send(self._outgoing.read(), NO_SIGNAL)  # the alert
            raise self._end
        return self._end  # type: ignore[return-value]

    def has_buffered_input(self) -> bool:
        return self._end is not None or bool(self._incoming.pending or self._decrypted)

    # Output.

    def take_events(self) -> bool:
        self.has_events = False
        has_output = self._stalled or bool(self._outgoing.pending)
        self._stalled = False  # send sets it again if necessary
        return has_output

    def send(self, data: Piece, flags: int) -> int:
        """Return how many bytes of *data* were encrypted and sent, as ``send`` of a non-blocking socket.

        *data* begins with the bytes that were encrypted before, but that the kernel did not take.
        """
        sent = 0
        while True:
            ciphertext = self._ciphertext or self._encrypted_next(data, sent)
            try:
                taken = self._plain.send(ciphertext, NO_SIGNAL) if ciphertext else 0
            except BlockingIOError:
                taken = 0
            if taken < len(ciphertext):
                self._ciphertext = memoryview(ciphertext)[taken:]
                if sent and sent == len(data):  # hold back a byte, so that TLS's own messages count as pending
                    self._encrypted = 1
                    sent -= 1
                if not sent:
                    raise BlockingIOError
                return sent
            self._ciphertext = b""
            sent += self._encrypted
            self._encrypted = 0
            if (sent == len(data) and not self._outgoing.pending) or not ciphertext:
                return sent

    def sendmsg(self, pieces: list[Piece]) -> int:
        # Small pieces are already joined, and joining large pieces repeatedly is expensive.
        return self.send(pieces[0], NO_SIGNAL)

    def _encrypted_next(self, data: Piece, start: int) -> bytes:
        """Return the ciphertext of some of *data*, from *start* on, after TLS's own messages."""
        view = memoryview(data)[start : start + (0 if self._refuses else ENCRYPT_SIZE)]
        done = 0
        try:
            while done < len(view):
                done += self.ssl_object.write(view[done:])
        except ssl.SSLWantReadError:
            self._stalled = True
        self._encrypted = done
        return self._outgoing.read()

    def waits_for_input(self) -> bool:
        return self._stalled and not self._ciphertext

    def make_end_message(self) -> bool:
        if self._close_sent:
            return False
        self._close_sent = True
        if self._incoming.pending and self._end is None:
            # Otherwise, unwrap would treat unread input as an error, and receiving would fail from then on.
            self._decrypted = b"".join(self._records())
        with suppress(ssl.SSLError):  # raised if the peer has not ended yet
            self.ssl_object.unwrap()
        return True

    def end_output(self, *, closes: bool) -> None:
        self._plain.end_output(closes=closes)

    def drop_output(self, some: bool) -> None:
        if some or self._ciphertext:
            self._close_sent = True  # a close_notify would mean that the output is complete

    # The end.

    def reset(self) -> None:
        self._plain.reset()

    def close(self) -> None:
        self._plain.close()
        self._end = None  # the traceback of the exception refers to the connection

    def leave_to_parent(self) -> None:
        self._plain.leave_to_parent()

    # The socket below.

    def wrap_calls(self, wrap: WrapCall) -> None:
        self._plain.wrap_calls(wrap)

    def fileno(self) -> int:
        return self._plain.fileno()

    def getsockname(self) -> Any:
        return self._plain.getsockname()

    def traffic(self, input_has_ended: bool) -> tuple[int, int]:
        return self._plain.traffic(input_has_ended)

    def queued_output(self) -> int:
        return self._plain.queued_output()

    def has_input(self) -> bool:
        return self._plain.has_input()

    def is_broken(self) -> bool:
        return self._plain.is_broken()

    def has_error(self) -> bool:
        return self._plain.has_error()

    def take_error(self) -> OSError:
        return self._plain.take_error()

    def peer_has_finished(self) -> bool:
        return self._plain.peer_has_finished()
