"""Run under systemd: listen on sockets that it hands over, and notify it about the state of the program.

Every function does nothing if systemd has not asked for it, so a program that calls them runs anywhere.
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

#: The first descriptor that is handed over.
FIRST = 3

#: Seconds to wait for systemd to take a message.  It reads them at once, unless the machine is stuck.
NOTIFY_TIMEOUT = 1.0


def sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd has handed over to this process, by their names.

    A listener takes such a socket as its address.  When it closes, the socket stays open in systemd, and new clients
    wait there for the next process.  Never blocks.  A second call returns nothing.  Child processes inherit nothing.

    :returns: a list for each name, which is the value of ``FileDescriptorName=``, or else the name of the socket unit.
        The sockets of a unit are in its order.  Empty if systemd has handed over nothing.
    :raises ValueError: ``LISTEN_FDS`` is not a number, or a descriptor is not a socket.
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
    """Send *assignments*, such as ``READY=1``, to systemd, and return whether it has been sent.

    Does nothing if systemd has not asked for it (``Type=notify``).  Can be called on any thread, and on the hub.  If
    systemd does not read, blocks the thread for a second at most.  A failure does not raise, but is logged to
    ``ngi_gevent.systemd``.

    :param assignments: ``READY=1`` once the program serves, ``STOPPING=1`` when it begins to stop, ``STATUS=`` and a
        text for ``systemctl status``, or others of ``sd_notify``.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    # "@" stands for the null byte of an abstract name.  The original class: it makes no hub, and works on any.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with get_original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_TIMEOUT)
            sock.connect(name)
            sock.send("\n".join(assignments).encode())
    except OSError as error:  # also if no descriptor is left
        logs.systemd.warning("unable to notify systemd at %r of %s: %s", address, ", ".join(assignments), error)
        return False
    return True


@contextmanager
def reloading() -> Iterator[None]:
    """Notify systemd that the program loads its configuration again, and after the block that it has done so."""
    # The clock of the system, which systemd compares with its own.
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def watchdog() -> None:
    """Notify systemd regularly from now on that the hub of the calling thread runs.

    Does nothing without ``WatchdogSec=``.  With it, systemd restarts the program when a handler has not let others run
    for that long.  Never blocks.

    :raises ValueError: ``WATCHDOG_USEC`` is not a number above 0.
    """
    pid = os.getpid()
    period, wanted = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", str(pid))
    if not period or wanted != str(pid):
        return
    if not (period.isascii() and period.isdecimal() and int(period) > 0):
        raise ValueError(f"WATCHDOG_USEC must be an int >= 1; got {period!r}")
    gevent.spawn(_notify_regularly, pid, int(period) / 2_000_000)


def _notify_regularly(pid: int, seconds: float) -> None:
    while os.getpid() == pid:  # and not in a forked child
        notify("WATCHDOG=1")
        gevent.sleep(seconds, ref=False)
