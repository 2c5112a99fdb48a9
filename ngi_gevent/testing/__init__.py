"""An implementation without sockets, and handlers that print or record: for testing handlers in memory.

Start with :class:`Recorder` and :class:`Implementation`, or, for doctests, with a :class:`Connection` that prints.
Then there are :func:`check_chunking`, for input that is cut; :class:`Faulty`, a network that fails;
:func:`nothing_left`, for what is left over; and, not imported here since it needs pytest,
:mod:`ngi_gevent.testing.contract`.

In memory, everything is synchronous and deterministic.  Nothing is spawned and nothing waits: ``connect`` has run its
course when it returns, and what is written outside of any callback has been handled when ``write`` returns.  Callbacks
run on the greenlet of the call that led to them, so one that blocks keeps that call.  A callback that causes another
has it queued, never nested: callbacks of one implementation, or of one pair made with :class:`Connection`, take turns
in the order in which they were caused.
"""

from ngi_gevent.testing.chunking import check_chunking
from ngi_gevent.testing.conversation import Answer, converse
from ngi_gevent.testing.faults.faulty import Faulty
from ngi_gevent.testing.faults.plan import Faults, Input, Plan
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
    "Input",
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
