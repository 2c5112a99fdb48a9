"""The metrics of listeners, for Prometheus and for the log.

``listener.metrics()`` returns a :class:`~ngi_gevent.interfaces.ListenerMetrics`.  :class:`Collector` passes the metrics
of several listeners to the package ``prometheus-client``, and :func:`log_metrics` writes a log entry each minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ngi_gevent.core import logs
from ngi_gevent.core.checks import as_delay, as_positive_timeout
from ngi_gevent.core.threads import Flag

if TYPE_CHECKING:
    from prometheus_client import Metric

    from ngi_gevent.interfaces import IListener

__all__ = ["Collector", "log_metrics"]

#: The metrics with one value for each listener: the attribute, the name for Prometheus, and the description.
COUNTERS = (
    ("accepted", "accepted", "Connections that were accepted, including those that were refused for max_per_host"),
    ("failed_handshakes", "failed_handshakes", "Handshakes with clients that failed: PROXY headers, and TLS"),
    ("bytes_received", "received_bytes", "Bytes that peers have sent over TCP"),
    ("bytes_sent", "sent_bytes", "Bytes that the kernel has taken for peers over TCP"),
    ("cpu_seconds", "cpu_seconds", "Processor time of the thread of the listener's hub"),
)
GAUGES = (
    ("is_accepting", "accepting", "Whether the listener is open"),
    ("open", "connections", "Connections, including those in the handshake and those that are closing"),
    ("output_pending", "pending_bytes", "Bytes of output that wait in the process"),
    ("longest_turn", "longest_turn_seconds", "The longest time over slow_callback for which the hub stood still"),
)

#: The metrics with one value for each listener and key: the attribute, the name, the label, and the description.
BY_KEY = (
    ("limited", "limited", "limit", "How often each limit had an effect"),
    ("ended", "ended", "reason", "Ends of connections that had been open"),
)


class Collector:
    """A collector for ``prometheus-client``, which the extra ``metrics`` installs.

    Pass it to the ``register`` method of a registry.  All labels are names from this package and from the program.
    Bytes from peers never become a label.

    :param listeners: a mapping of names to listeners.  The names are the values of the label ``listener``.
    :raises TypeError: *listeners* is not a mapping of ``str`` to listeners.
    :raises ModuleNotFoundError: ``prometheus-client`` is not installed.
    """

    def __init__(self, listeners: Mapping[str, IListener]) -> None:
        # Programs without Prometheus import this module, too.
        from prometheus_client import core

        if not isinstance(listeners, Mapping) or not all(isinstance(name, str) for name in listeners):
            raise TypeError(f"listeners must be a mapping of names to listeners; got {listeners!r:.100}")
        for listener in listeners.values():
            _check_listener(listener)
        self._core = core
        self._listeners = dict(listeners)

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics.  Never blocks.  Call it on any thread."""
        metrics = {name: listener.metrics() for name, listener in self._listeners.items()}
        kinds: list[tuple[Any, Any]] = [
            (self._core.CounterMetricFamily, COUNTERS),
            (self._core.GaugeMetricFamily, GAUGES),
        ]
        for make, rows in kinds:
            for attribute, metric, text in rows:
                family = make(f"ngi_gevent_{metric}", text, labels=["listener"])
                for name, values in metrics.items():
                    value = getattr(values, attribute)
                    if value is not None:
                        family.add_metric([name], value)
                yield family
        for attribute, metric, label, text in BY_KEY:
            family = self._core.CounterMetricFamily(f"ngi_gevent_{metric}", text, labels=["listener", label])
            for name, values in metrics.items():
                for key, count in getattr(values, attribute).items():
                    family.add_metric([name, key], count)
            yield family


def log_metrics(listener: IListener, interval: float = 60.0) -> None:
    """Log the changes of the metrics of *listener* regularly, to ``ngi_gevent.listener`` at level INFO.

    Blocks the calling greenlet or thread until the listener is closed and its last connection is gone.

    :param interval: seconds between two log entries.
    :raises TypeError: *listener* is not a listener of connections, or *interval* has the wrong type.
    :raises ValueError: *interval* is 0, negative or not finite.
    """
    _check_listener(listener)
    interval = as_delay(interval, "interval")
    as_positive_timeout(interval, "interval")
    before = listener.metrics()
    while before.is_accepting or before.open:
        Flag().wait(interval)
        now = listener.metrics()
        logs.listeners.info(
            "listener on %r in %s seconds: %d accepted, %d ended, %d times limited, %d failed handshakes,"
            " %s bytes received, %s sent; now: %d open, %d bytes pending",
            *(listener.address, interval, now.accepted - before.accepted),
            *(_sum(now.ended) - _sum(before.ended), _sum(now.limited) - _sum(before.limited)),
            now.failed_handshakes - before.failed_handshakes,
            *(_difference(now.bytes_received, before.bytes_received), _difference(now.bytes_sent, before.bytes_sent)),
            *(now.open, now.output_pending),
        )
        before = now


def _check_listener(listener: Any) -> None:
    if not callable(getattr(listener, "metrics", None)):
        raise TypeError(f"only listeners of connections have metrics; got {listener!r:.100}")


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _difference(now: int | None, before: int | None) -> int | str:
    return "unknown" if now is None or before is None else now - before
