"""``while_open``: a block of code that is interrupted when its connection ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gevent import get_hub
from greenlet import getcurrent

if TYPE_CHECKING:
    from types import TracebackType

    from ngi_gevent.errors import ConnectionClosed
    from ngi_gevent.interfaces import Reason

__all__ = ["Interruption", "WhileOpen"]


class Interruption(BaseException):
    """The interruption of a block.  It is not an ``Exception``, so ``except Exception`` does not catch it."""


class Interrupting(Protocol):
    """The methods that a block calls on its connection."""

    def enter_block(self, block: WhileOpen) -> None:
        """Interrupt *block* when the connection ends.  Raises as ``while_open``."""

    def leave_block(self, block: WhileOpen) -> None:
        """Forget *block*."""

    def closed_error(self, reason: Reason | None = None) -> ConnectionClosed:
        """Return the exception for the use of a connection that has ended, for *reason*."""


class WhileOpen:
    """One ``with`` block.  Used on the thread of the connection's hub."""

    def __init__(self, connection: Interrupting) -> None:
        self._connection = connection
        self._greenlet: Any = None  # in the block
        self._callback: Any = None  # set once the block will be interrupted
        self._reason: Reason | None = None  # of the end, if the connection has not recorded it
        self._interruption: Interruption | None = None

    def __enter__(self) -> None:
        self._connection.enter_block(self)
        self._greenlet = getcurrent()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.leave_block(self)
        self._greenlet = None
        if self._callback is not None:
            self._callback.stop()
        if error is not None and error is self._interruption:
            raise self._connection.closed_error(self._reason) from None

    def interrupt(self, reason: Reason | None = None) -> None:
        """Interrupt the block when its greenlet waits.  Never blocks.

        :param reason: why the connection will end, if it has not recorded that yet.
        """
        if self._callback is None:
            self._reason = reason
            self._callback = get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        if self._greenlet is not None:
            self._interruption = Interruption()
            self._greenlet.throw(self._interruption)
