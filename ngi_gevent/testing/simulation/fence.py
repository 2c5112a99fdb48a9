"""The fence around a simulation: calls that would leave it raise an error.

Python reports most of these calls to audit hooks, even if they were imported under another name.  The others are
replaced while a simulation runs: ``select.select``, ``select.poll``, and, on older versions of Python, ``time.sleep``
and the functions that start a thread.  In a monkey-patched program, patched functions are not replaced, since they use
the simulation's hub; only the originals raise.

The fence does not detect:

* ``select.epoll``;
* locks and conditions of ``threading`` in a program that is not monkey-patched;
* input from a descriptor that was opened before;
* C extensions that start threads themselves.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gevent import monkey
from gevent.monkey import get_original

from ngi_gevent.core.threads import make_lock
from ngi_gevent.testing.simulation.errors import NotSimulated

__all__ = ["Fence", "is_inside"]

_NO_SOCKET = "use connect and listener of a host, not of ngi_gevent"
_NO_PROCESS = "a simulation runs in one process; use hosts"
_NO_THREAD = "a simulation runs on one native thread; use gevent.spawn"
_NO_SLEEP = "it would take real time; use gevent.sleep"

#: The call that causes an audit event, and the advice for the error message.
_EVENTS = {
    "_thread.start_new_thread": ("_thread.start_new_thread", _NO_THREAD),
    "_thread.start_joinable_thread": ("threading.Thread.start", _NO_THREAD),
    "os.exec": ("os.exec", _NO_PROCESS),
    "os.fork": ("os.fork", _NO_PROCESS),
    "os.forkpty": ("os.forkpty", _NO_PROCESS),
    "os.posix_spawn": ("os.posix_spawn", _NO_PROCESS),
    "os.system": ("os.system", _NO_PROCESS),
    "pty.spawn": ("pty.spawn", _NO_PROCESS),
    "socket.__new__": ("socket.socket", _NO_SOCKET),
    "socket.bind": ("socket.bind", _NO_SOCKET),
    "socket.connect": ("socket.connect", _NO_SOCKET),
    "socket.getaddrinfo": ("socket.getaddrinfo", _NO_SOCKET),
    "socket.gethostbyaddr": ("socket.gethostbyaddr", _NO_SOCKET),
    "socket.gethostbyname": ("socket.gethostbyname", _NO_SOCKET),
    "socket.getnameinfo": ("socket.getnameinfo", _NO_SOCKET),
    "socket.sendmsg": ("socket.sendmsg", _NO_SOCKET),
    "socket.sendto": ("socket.sendto", _NO_SOCKET),
    "subprocess.Popen": ("subprocess.Popen", _NO_PROCESS),
    "time.sleep": ("time.sleep", _NO_SLEEP),
}

#: Functions that raise no audit event: module, name, and the advice for the error message.
_REPLACED = [
    ("_posixsubprocess", "fork_exec", _NO_PROCESS),  # multiprocessing calls it
    ("select", "poll", _NO_SOCKET),
    ("select", "select", _NO_SOCKET),
]
if sys.version_info < (3, 13):
    _REPLACED.append(("time", "sleep", _NO_SLEEP))
if sys.version_info < (3, 12):
    _REPLACED += [
        ("_thread", "start_new_thread", _NO_THREAD),
        ("_thread", "start_new", _NO_THREAD),
        ("threading", "_start_new_thread", _NO_THREAD),
        ("gevent.threadpool", "start_new_thread", _NO_THREAD),
    ]


# The original class, because patched ``threading.local`` is about greenlets.
class _Here(get_original("_thread", "_local")):  # type: ignore[misc]
    is_inside = False


_here = _Here()


def is_inside() -> bool:
    """Return whether the calling native thread runs a simulation."""
    return _here.is_inside


class Fence:
    """A context manager inside of which calls of this native thread that leave the simulation raise ``NotSimulated``.

    Other threads are not affected.  Fences on one thread cannot be nested.
    """

    def __enter__(self) -> None:
        _replacements.begin()
        _here.is_inside = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _here.is_inside = False
        _replacements.end()


class _Replacements:
    """The replacements for functions that raise no audit event.  All fences of the process share them."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self._users = 0
        self._is_hooked = False
        self._replaced: list[tuple[dict[str, Any], str, Any, Any]] = []

    def begin(self) -> None:
        with self._lock:
            if not self._is_hooked:  # only once, because a hook cannot be removed
                self._is_hooked = True
                sys.addaudithook(_check_event)
            self._users += 1
            if self._users == 1:
                for module, name, instead in _REPLACED:
                    self._replace(module, name, instead)

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for owner, name, original, guarded in self._replaced:
                    if owner[name] is guarded:  # otherwise the program was monkey-patched in between
                        owner[name] = original
                self._replaced.clear()

    def _replace(self, module: str, name: str, instead: str) -> None:
        originals = monkey.saved.get(module, {})  # type: ignore[attr-defined]
        owner = originals if name in originals else vars(sys.modules.get(module) or importlib.import_module(module))
        original = owner.get(name)
        if original is not None:
            guarded = owner[name] = _guarded(original, f"{module}.{name}", instead)
            self._replaced.append((owner, name, original, guarded))


_replacements = _Replacements()


def _check_event(event: str, arguments: object) -> None:
    if event in _EVENTS and _here.is_inside:
        _refuse(*_EVENTS[event])


@functools.cache  # cached, because short simulations would spend a quarter of their time here
def _guarded(function: Callable[..., Any], call: str, instead: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        if _here.is_inside:
            _refuse(call, instead)
        return function(*arguments, **options)

    return guarded


def _refuse(call: str, instead: str) -> None:
    raise NotSimulated(f"{call} was called in a simulation; {instead}")
