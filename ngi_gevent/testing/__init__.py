"""An implementation in memory, without sockets, and handlers that print or record, for testing handlers.

Start with :class:`Recorder` and :class:`Implementation`.  For doctests, start with a :class:`Connection` that prints.
:func:`check_chunking` cuts input at every place, :class:`Faulty` is a network that fails, and :func:`nothing_left`
finds leftovers.  This module does not import :mod:`ngi_gevent.testing.contract`, because that needs pytest.

In memory, everything is synchronous and deterministic.  Nothing is spawned, and nothing waits.  When ``connect`` or
``write`` returns, it has called all callbacks that it caused, except inside a callback.  A callback runs on the
greenlet whose call led to it, so it cannot wait: it raises :class:`~ngi_gevent.WouldWait`.  Callbacks are never nested.
The callbacks of one implementation, or of one pair made with :class:`Connection`, are queued and called in order.
"""

from ngi_gevent.testing.chunking import check_chunking
from ngi_gevent.testing.conversation import Answer, converse
from ngi_gevent.testing.faults.faulty import Faulty
from ngi_gevent.testing.faults.plan import Faults, InputFaults, Plan
from ngi_gevent.testing.leaks import nothing_left
from ngi_gevent.testing.memory.connection import Connection, TextConnection
from ngi_gevent.testing.memory.datagram import DatagramListener
from ngi_gevent.testing.memory.implementation import (
    Implementation,
    connect,
    connectable,
    default,
    listener,
    udp,
    udp_listener,
    wait,
)
from ngi_gevent.testing.memory.listening import Listener
from ngi_gevent.testing.memory.printing import PrintingHandler, TextPrintingHandler
from ngi_gevent.testing.recorder import Recorder
from ngi_gevent.testing.work import check_work

__all__ = [
    "Answer",
    "Connection",
    "DatagramListener",
    "Faults",
    "Faulty",
    "Implementation",
    "InputFaults",
    "Listener",
    "Plan",
    "PrintingHandler",
    "Recorder",
    "TextConnection",
    "TextPrintingHandler",
    "check_chunking",
    "check_work",
    "connect",
    "connectable",
    "converse",
    "default",
    "listener",
    "nothing_left",
    "udp",
    "udp_listener",
    "wait",
]
