"""The Network Gateway Interface on gevent: handlers for network connections, testable without sockets."""

from ngi_gevent.core.limits import Limits
from ngi_gevent.core.service import Service
from ngi_gevent.errors import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionTimeout,
    Deadlock,
    ImplementationClosed,
    LimitExceeded,
    ListenerClosed,
    NGIError,
    Timeout,
    UnexpectedResponse,
    WouldWait,
)
from ngi_gevent.sockets.implementation import Implementation
from ngi_gevent.sockets.inline import Inline
from ngi_gevent.sockets.threaded import Threaded

__all__ = [
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionTimeout",
    "Deadlock",
    "Implementation",
    "ImplementationClosed",
    "Inline",
    "LimitExceeded",
    "Limits",
    "ListenerClosed",
    "NGIError",
    "Service",
    "Threaded",
    "Timeout",
    "UnexpectedResponse",
    "WouldWait",
    "connect",
    "listener",
    "udp",
    "udp_listener",
    "wait",
]

_default = Implementation()
connect = _default.connect
listener = _default.listener
udp = _default.udp
udp_listener = _default.udp_listener
wait = _default.wait
