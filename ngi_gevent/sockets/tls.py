"""TLS: a connection whose bytes are encrypted on their way to the socket, with any ``ssl.SSLContext``.

The context, the standard library's or gevent's, makes an ``ssl.SSLObject`` between two buffers in memory, so nothing
that it does could ever block.  To the rest of the connection, ``_decrypt`` and ``_encrypt`` are what ``recv`` and
``send`` of a socket are without TLS, with two differences, for both of which there is a note in the connection:

* What was received may hold more than what is told to the handler at once: input and the end of input in one piece, or
  input behind the end of the handshake.  The socket does not become readable for that again, so ``_attend`` looks.
* Reading may have something to be sent, and writing may have to wait for input: TLS has messages of its own.  An empty
  piece in ``_unsent`` stands for the first, ``_stalled`` says the second.

Plaintext stays in ``_unsent``, and counts as pending, until the kernel has taken what it became.

This module is imported when a context is given, and not before.
"""

from __future__ import annotations

import errno
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent import Timeout
from gevent.monkey import get_original
from greenlet import getcurrent

from ngi_gevent.core import logs
from ngi_gevent.core.connection import CLOSED, CLOSING, END_OF_INPUT, HANDSHAKE, OPEN, STOPPED
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.stream import RECEIVE_SIZE, StreamConnection

if TYPE_CHECKING:
    from contextvars import Context

    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.idle import IdleTimer

__all__ = ["TLSConnection", "client_side", "server_side"]

#: Bytes that a record of TLS has at most.
RECORD_SIZE = 16 * 1024

#: Bytes that are encrypted for one system call: what the kernel does not take of it is in memory twice.
ENCRYPT_SIZE = 64 * 1024

#: Bytes of messages of TLS itself that may wait for a peer: what two pieces of its input could make us answer.
OWN_LIMIT = 2 * RECEIVE_SIZE

#: Failed handshakes with clients of one listener that are logged in ``logs.SELDOM`` seconds.
MOST_FAILED = 10

MakeSSLObject = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]


def server_side(ssl_context: Any, handshake_timeout: float | None) -> Callable[..., TLSConnection]:
    """What makes connections of accepted sockets.  Raises ``TypeError`` or ``ValueError`` for what is no context."""
    _check_context(ssl_context)
    make = _checked(partial(ssl_context.wrap_bio, server_side=True))
    return partial(TLSConnection, make, handshake_timeout, logs.Seldom(MOST_FAILED))


def client_side(ssl_context: Any, server_hostname: str) -> Callable[..., TLSConnection]:
    """What makes connections of sockets that were connected to *server_hostname*, which may be ``''`` for none.

    Raises ``TypeError`` or ``ValueError`` for what is no context, and for a name that cannot be one, or is missing.
    """
    _check_context(ssl_context)
    if not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname is text; got {server_hostname!r}")
    if ssl_context.check_hostname and not server_hostname:
        # An SSLObject, unlike an SSLSocket, would check nothing then.
        raise ValueError("server_hostname is missing, and this ssl_context is to check it (check_hostname)")
    make = partial(ssl_context.wrap_bio, server_hostname=server_hostname or None)
    return partial(TLSConnection, _checked(make), None, None)


def _check_context(ssl_context: Any) -> None:
    # The original class is a base of the one that gevent puts in its place.
    if not isinstance(ssl_context, get_original("ssl", "SSLContext")):
        raise TypeError(f"ssl_context is an ssl.SSLContext, or None; got {ssl_context!r:.100}")


def _checked(make: MakeSSLObject) -> MakeSSLObject:
    """*make*, having tried it: the ``ssl`` module knows best what a context can do, and which names there can be."""
    try:
        make(ssl.MemoryBIO(), ssl.MemoryBIO())
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise ValueError(f"this ssl_context cannot be used so: {error}") from None
    return make


@documented_by(IConnection)
class TLSConnection(StreamConnection):
    """A connection on a gevent socket, encrypted.  It begins with a handshake, on its greenlet."""

    __slots__ = (
        "_ciphertext",
        "_close_sent",
        "_encrypted",
        "_failed_handshakes",
        "_handshake_timeout",
        "_incoming",
        "_last",
        "_outgoing",
        "_receive_ciphertext",
        "_send_ciphertext",
        "_stalled",
        "_truncated",
        "ssl_object",
    )

    def __init__(
        self,
        make: MakeSSLObject,
        handshake_timeout: float | None,
        failed_handshakes: logs.Seldom | None,
        *arguments: Any,
    ) -> None:
        self.ssl_object: Any
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = make(self._incoming, self._outgoing)
        super().__init__(*arguments)
        self._state = HANDSHAKE
        self._handshake_timeout = handshake_timeout
        self._failed_handshakes = failed_handshakes
        # The one use of a private attribute of gevent's contexts: what they call back looks here for what it is about.
        self.ssl_object._sslsock = weakref.ref(self.ssl_object)
        self._last: ssl.SSLError | bytes | None = None  # how input ended, once all input has been told
        self._truncated = False  # whether it ended without the peer's saying so
        self._ciphertext: bytes | memoryview = b""  # what the kernel has not taken
        self._encrypted = 0  # how much of what is unsent that is, in plaintext
        self._stalled = False  # whether output waits for input
        self._close_sent = False  # whether our own end has been said, or is not to be
        self._receive_ciphertext, self._send_ciphertext = self._receive, self._send
        self._send = self._encrypt
        self._send_pieces = self._encrypt_pieces

    def _have_noted(self, timer: IdleTimer) -> None:
        self._receive_ciphertext = timer.noting(self._receive_ciphertext)
        self._send_ciphertext = timer.noting(self._send_ciphertext)

    # The handshake.

    def start(self, begin: Callable[[Any], object], where: str, context: Context) -> None:
        super().start(partial(TLSConnection._begin_as_server, begin=begin), where, context)

    def _begin_as_server(self, begin: Callable[[Any], object]) -> object:
        """Begin with the handshake; a stranger with whom it fails is no concern of the application's."""
        reason: Any = None
        try:
            with Timeout(self._handshake_timeout):
                self.shake_hands()
        except Timeout:
            reason = f"it was not done after {self._handshake_timeout} seconds"
        except OSError as error:
            reason = error
        if reason is None:
            return begin(self)
        logs.connections.info(
            "connection with %r: the TLS handshake failed: %s",
            *(self.peer_address, logs.shown(reason)),
            seldom=self._failed_handshakes,
        )
        return None

    def shake_hands(self) -> None:
        self.resume = getcurrent().switch
        began = latest = self._network.now()
        extension: Timeout | None = None
        try:
            while not self._handshake_is_done():
                try:
                    self._wait_for_input()
                except Timeout as timeout:
                    # After a stall of the whole process, what the peer sent in time may have been received only now, or
                    # not yet.  So the handshake goes on, but only once.
                    if self._state is not HANDSHAKE:  # it was stopped in the same turn
                        raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED) from None
                    seconds = timeout.seconds or 0.0
                    stalled = latest - began > seconds or self._network.has_input(self._socket)
                    if extension is not None or not stalled:
                        raise
                    extension = Timeout.start_new(seconds)
                    self.waiting = False
                self._incoming.write(self._receive_in_handshake())
                latest = self._network.now()
        except ssl.SSLError:
            self._refuse()
            raise
        except BaseException:
            self.waiting = False
            self._callbacks_done = True
            self.close_socket()
            raise
        finally:
            if extension is not None:
                extension.close()
        self._state = OPEN
        self._receive = self._decrypt

    def _handshake_is_done(self) -> bool:
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._send_of_ones_own()
        return True

    def _wait_for_input(self) -> None:
        if self._state is HANDSHAKE:  # or it was stopped before it began
            if not self._reading:
                self._reading = True
                self._read_watcher.start(self._dispatcher.ready.append, self)
            self.waiting = True
            self._dispatcher.hub.switch()
            self.waiting = False
        if self._state is not HANDSHAKE:
            raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED)

    def _receive_in_handshake(self) -> bytes:
        try:
            data = self._receive_ciphertext(RECEIVE_SIZE)
        except BlockingIOError:
            if self._output_error is not None:
                raise self._output_error from None
            return b""
        if not data:
            raise self._output_error or ssl.SSLEOFError(
                ssl.SSL_ERROR_EOF, "the peer ended the connection in the TLS handshake"
            )
        return data

    def _refuse(self) -> None:
        """The handshake has failed: let the peer learn why, and be gone."""
        self._close_sent = True
        self._callbacks_done = True
        self._leave_open(None)
        self._ended_for = None  # a line for the handshake will tell

    # Input.

    def _decrypt(self, size: int) -> bytes:
        """What ``recv`` is to a plain connection; takes all there is in what was received."""
        if self._last is not None:
            return self._the_last()
        if not self._incoming.pending:
            data = self._receive_ciphertext(size)
            if not data:
                self._truncated = True
                return data
            self._incoming.write(data)
        pieces = self._records()
        if self._stalled:
            self._stalled = False
            self._dispatcher.send_later(self)
        self._send_of_ones_own()
        if self._outgoing.pending > OWN_LIMIT:
            self._last = ssl.SSLError(
                ssl.SSL_ERROR_SSL, "the peer wants to be answered all the time, and takes no answers"
            )
        if not pieces:
            if self._last is None:
                raise BlockingIOError
            return self._the_last()
        if self._last is not None:
            self._attention = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _records(self) -> list[bytes]:
        read = self.ssl_object.read
        incoming = self._incoming
        pieces = []
        try:
            while True:
                piece = read(RECORD_SIZE)
                if not piece:
                    self._last = piece
                    break
                pieces.append(piece)
                if not incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:  # where both sides have ended, the end is one, too
            self._last = error
        return pieces

    def _the_last(self) -> bytes:
        if isinstance(self._last, ssl.SSLError):
            if not self._ciphertext:
                with suppress(OSError):
                    self._send_ciphertext(self._outgoing.read())  # so that the peer may learn why
            raise self._last
        return self._last  # type: ignore[return-value]

    def _attend(self) -> bool:
        is_open = super()._attend()
        if self._reading and (self._last is not None or self._incoming.pending):
            # There is something to be told, which the socket does not become readable for.
            self._dispatcher.wake(self)
        return is_open

    # Output.

    def _send_of_ones_own(self) -> None:
        """Send what TLS itself has to say, unless it goes with other output anyway."""
        if self._outgoing.pending and not self._unsent and not self._shut:
            self.queue(b"")

    def _encrypt(self, data: bytes | memoryview) -> int:
        """What ``send`` is to a plain connection; *data* begins with what was encrypted for the kernel in vain."""
        sent = 0
        while True:
            ciphertext = self._ciphertext or self._encrypted_next(data, sent)
            try:
                taken = self._send_ciphertext(ciphertext) if ciphertext else 0
            except BlockingIOError:
                taken = 0
            if taken < len(ciphertext):
                self._ciphertext = memoryview(ciphertext)[taken:]
                if not sent:
                    raise BlockingIOError
                return sent
            self._ciphertext = b""
            sent += self._encrypted
            self._encrypted = 0
            if sent == len(data) or not ciphertext:
                return sent

    def _encrypt_pieces(self, pieces: list[bytes | memoryview]) -> int:
        return self._send(pieces[0])  # the small ones are joined already, and joining large ones again and again costs

    def _encrypted_next(self, data: bytes | memoryview, start: int) -> bytes:
        """Some of *data*, from *start* on, encrypted; and what TLS itself has to say before."""
        view = memoryview(data)[start : start + ENCRYPT_SIZE]
        done = 0
        try:
            while done < len(view):
                done += self.ssl_object.write(view[done:])
        except ssl.SSLWantReadError:
            self._stalled = True
        self._encrypted = done
        return self._outgoing.read()

    def _wait_for_peer(self) -> None:
        if not self._stalled or self._ciphertext:
            super()._wait_for_peer()
            return
        # The peer wants another handshake first.  The kernel would take more, and reading must go on, meanwhile.
        if self._output_waits:
            self._output_waits = False
            self._write_watcher.stop()
        if self._paused:
            self._paused = False
            self._notify()
        if self._state is CLOSING:
            self._linger.expect_progress()  # type: ignore[union-attr]

    # The end.

    def _leave_open(self, reason: Reason | None) -> None:
        if self._truncated and reason == END_OF_INPUT:
            reason = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the connection without ending TLS")
        super()._leave_open(reason)

    def stop(self) -> None:
        if self._state is HANDSHAKE:
            self.close_socket()
        else:
            super().stop()

    def _drop_output(self) -> None:
        if self._pending or self._ciphertext:
            self._close_sent = True  # or the peer would take what it got for all there is
        super()._drop_output()

    def _output_over(self) -> None:
        if self._close_sent or self._state is CLOSED:
            super()._output_over()
            return
        self._close_sent = True
        if self._incoming.pending and self._last is None:
            self._records()  # or unwrap would take it for an error, after which no more input can be discarded
        with suppress(ssl.SSLError):  # it says that the peer has not ended yet
            self.ssl_object.unwrap()
        self._unsent.append(b"")
        self.send_pending()  # which comes back here once that is sent

    def _is_gone(self) -> None:
        super()._is_gone()
        self._receive_ciphertext, self._send_ciphertext = self._receive, self._send
        self._last = None  # the traceback of an exception holds the connection that it was raised in
