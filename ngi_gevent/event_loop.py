"""Where gevent's event loops differ, as far as connections go: with libev, which is the default, and with libuv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LastingWatcher", "for_timer", "is_libuv"]


def is_libuv(loop: Any) -> bool:
    return type(loop).__module__.startswith("gevent.libuv.")


def for_timer(loop: Any, seconds: float) -> float:
    """*seconds*, but no less than a timer of *loop* counts.

    With libuv, gevent warns of less, and has its loop look at a timer of none in a way that can crash the process.
    """
    least: float = loop.approx_timer_resolution
    return max(seconds, least)


class LastingWatcher:
    """An io watcher of libuv that, once started, calls until it is stopped.

    gevent's stops where the descriptor has an error, having called once, though there may be input to be read before.
    """

    __slots__ = ("_arguments", "_callback", "_watcher", "close", "stop")

    def __init__(self, loop: Any, descriptor: int, events: int) -> None:
        self._watcher = loop.io(descriptor, events)
        self.close: Callable[[], None] = self._watcher.close
        self.stop: Callable[[], None] = self._watcher.stop

    def start(self, callback: Callable[..., object], *arguments: Any) -> None:
        self._callback = callback
        self._arguments = arguments
        self._watcher.start(self._call, pass_events=True)

    def _call(self, events: int) -> None:
        if events < 0:
            self._watcher.stop()
            self._watcher.start(self._call, pass_events=True)
        self._callback(*self._arguments)
