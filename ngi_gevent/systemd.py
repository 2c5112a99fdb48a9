"""Functions for programs under systemd: its sockets, and notifications about the program's state.

Without systemd, each function does nothing, so a program that calls them runs everywhere.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from gevent.monkey import get_original

from ngi_gevent.core import logs

__all__ = ["notify", "reloading", "sockets", "watchdog"]

#: The first descriptor that systemd passes.
FIRST = 3

#: Seconds to wait until systemd takes a message.  It does so at once, unless the machine is stuck.
NOTIFY_TIMEOUT = 1.0


def sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd has passed to this process, by their names.

    A listener takes such a socket as its address.  When the listener closes, the socket stays open in systemd, and new
    clients wait in its queue for the next process.  Never blocks.  A second call returns an empty dict.  Child
    processes do not inherit the sockets.

    :returns: a list for each name, in the order of the unit.  The name is the value of ``FileDescriptorName=``;
        without that, the name of the socket unit.  Empty if systemd has not passed sockets.
    :raises ValueError: ``LISTEN_FDS`` is not an int >= 0, or a descriptor is not a socket.
    """
    is_ours = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count, names = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_FDNAMES", "")
    found: dict[str, list[socket.socket]] = {}
    if not is_ours:
        return found
    if not (count.isascii() and count.isdecimal()):
        raise ValueError(f"LISTEN_FDS must be an int >= 0; got {count!r}")
    named = names.split(":") if names else []
    for descriptor in range(FIRST, FIRST + int(count)):
        name = named[descriptor - FIRST] if descriptor - FIRST < len(named) else "unknown"
        try:
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            for others in found.values():
                for other in others:
                    other.close()
            raise ValueError(f"descriptor {descriptor} ({name!r}) from systemd is not a socket: {error}") from error
        found.setdefault(name, []).append(sock)
    return found


def notify(*assignments: str) -> bool:
    """Send *assignments*, such as ``READY=1``, to systemd, and return whether they were sent.

    Does nothing without ``Type=notify`` in the unit.  If systemd does not read, blocks the thread for up to 1 second.
    Call it on any thread, or on the hub.  Never raises: the logger ``ngi_gevent.systemd`` logs failures.

    :param assignments: ``READY=1`` when the program serves, ``STOPPING=1`` when it begins to stop, ``STATUS=`` and a
        text for ``systemctl status``, or others of ``sd_notify``.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    # "@" stands for the null byte of an abstract name.  gevent's class would make a hub, and would not work on one.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with get_original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_TIMEOUT)
            sock.connect(name)
            sock.send("\n".join(assignments).encode())
    except OSError as error:  # One reason is that no descriptor is left.
        logs.systemd.warning("unable to notify systemd at %r of %s: %s", address, ", ".join(assignments), error)
        return False
    return True


@contextmanager
def reloading() -> Iterator[None]:
    """Notify systemd that the program is loading its configuration again, and at the end of the block that it has.

    A context manager.
    """
    # systemd compares this time with the kernel's clock, so it does not come from core.clock.
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def watchdog() -> None:
    """Notify systemd regularly from now on that the hub of the calling thread runs.

    Does nothing without ``WatchdogSec=`` in the unit.  With it, systemd restarts the program if a handler keeps the hub
    for that many seconds.  Never blocks.

    :raises ValueError: ``WATCHDOG_USEC`` is not an int >= 1.
    """
    pid = os.getpid()
    period, wanted = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", str(pid))
    if not period or wanted != str(pid):
        return
    if not (period.isascii() and period.isdecimal() and int(period) > 0):
        raise ValueError(f"WATCHDOG_USEC must be an int >= 1; got {period!r}")
    gevent.spawn(_notify_regularly, pid, int(period) / 2_000_000)


def _notify_regularly(pid: int, seconds: float) -> None:
    while os.getpid() == pid:  # A forked child must not notify systemd.
        notify("WATCHDOG=1")
        gevent.sleep(seconds, ref=False)
