"""The options of one connection, which ``listener`` and ``connect`` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ngi_gevent.core.checks import as_positive_timeout, as_timeout, check_count
from ngi_gevent.core.output import OUTPUT_LIMIT

if TYPE_CHECKING:
    from ngi_gevent.interfaces import KeepAlive

__all__ = ["LINGER_TIMEOUT", "ConnectionOptions"]

#: Seconds that a closed connection waits for input, or for its end, after all output has been delivered.
LINGER_TIMEOUT = 1.0

#: The largest values that Linux accepts for the three parts of ``keep_alive``.
MOST_KEEP_ALIVE = {"idle": 32767, "interval": 32767, "count": 127}


class ConnectionOptions(NamedTuple):
    """Options that have been checked.  See :meth:`ngi_gevent.Implementation.listener`."""

    idle_timeout: float | None
    output_limit: int
    keep_alive: KeepAlive
    linger_timeout: float | None

    @classmethod
    def checked(
        cls,
        idle_timeout: float | None = None,
        output_limit: int = OUTPUT_LIMIT,
        keep_alive: KeepAlive = True,
        linger_timeout: float | None = LINGER_TIMEOUT,
    ) -> ConnectionOptions:
        """Return the options.

        :raises TypeError: an option has the wrong type.
        :raises ValueError: an option cannot be used.
        """
        check_count("output_limit", output_limit)
        _check_keep_alive(keep_alive)
        idle_timeout = as_positive_timeout(idle_timeout, "idle_timeout")
        return cls(idle_timeout, output_limit, keep_alive, as_timeout(linger_timeout, "linger_timeout"))


def _check_keep_alive(value: Any) -> None:
    if isinstance(value, bool):
        return
    if not isinstance(value, tuple):
        raise TypeError(f"keep_alive must be True, False or (idle, interval, count); got {value!r}")
    if len(value) != len(MOST_KEEP_ALIVE):
        raise ValueError(f"keep_alive must have three parts, (idle, interval, count); got {value!r}")
    for (name, most), part in zip(MOST_KEEP_ALIVE.items(), value, strict=True):
        check_count(f"{name} of keep_alive", part, least=1)
        if part > most:
            raise ValueError(f"{name} of keep_alive must be an int <= {most}; got {part!r}")
