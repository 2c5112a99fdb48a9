"""Where gevent's event loops differ, as far as connections go: with libev, which is the default, and with libuv."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gevent._ffi.callback import callback  # type: ignore[import-not-found]

__all__ = ["LastingWatcher", "check_room_for_loop", "for_timer", "is_libuv", "run_callback_threadsafe"]


def is_libuv(loop: Any) -> bool:
    return type(loop).__module__.startswith("gevent.libuv.")


def check_room_for_loop() -> None:
    """Raise ``OSError`` unless this process can open the descriptors of one more loop.

    With libev, a loop that can open none for its own wake-ups tries again forever, without waiting.
    """
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(2):  # libev opens up to three descriptors
            pipes.append(os.pipe())
    finally:
        for ends in pipes:
            for end in ends:
                os.close(end)


def for_timer(loop: Any, seconds: float) -> float:
    """*seconds*, but no less than a timer of *loop* counts.

    With libuv, gevent warns of less, and has its loop look at a timer of none in a way that can crash the process.
    """
    least: float = loop.approx_timer_resolution
    return max(seconds, least)


def run_callback_threadsafe(loop: Any, function: Callable[..., object], *arguments: Any) -> None:
    """Have *loop* call *function* soon, on its own thread.  Called on any thread.

    With libuv, gevent's method of that name has the calling thread change the queues and counts of the loop, which may
    be at them meanwhile: seldom, that crashes the process.  Here it is only told to look at its callbacks, which is
    what the private attributes are for.
    """
    if is_libuv(loop):
        loop._callbacks.append(callback(function, arguments))
        loop._threadsafe_async.send()
    else:
        loop.run_callback_threadsafe(function, *arguments)


class LastingWatcher:
    """An io watcher of libuv that, once started, calls until it is stopped.

    gevent's stops where the descriptor has an error, having called once, though there may be input to be read before.
    """

    __slots__ = ("_watcher", "stop")

    def __init__(self, loop: Any, descriptor: int, events: int) -> None:
        self._watcher = loop.io(descriptor, events)
        self.stop: Callable[[], None] = self._watcher.stop

    def start(self, callback: Callable[..., object], *arguments: Any) -> None:
        self._watcher.start(self._call, callback, *arguments, pass_events=True)

    def close(self) -> None:
        self._watcher.close()
        # Or it would refer to what it has called, which most likely refers to it, until the garbage collector comes.
        self._watcher.stop()

    def _call(self, events: int, callback: Callable[..., object], *arguments: Any) -> None:
        if events < 0:
            self._watcher.stop()
            self.start(callback, *arguments)
        callback(*arguments)
