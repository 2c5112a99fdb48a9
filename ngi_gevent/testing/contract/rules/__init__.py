"""The contract, as rules.  Each rule is a test that runs on every stage.

The modules of this package have the tests, by subject.
"""

from ngi_gevent.testing.contract.rules.back_pressure import *
from ngi_gevent.testing.contract.rules.closing import *
from ngi_gevent.testing.contract.rules.connections import *
from ngi_gevent.testing.contract.rules.datagram_listeners import *
from ngi_gevent.testing.contract.rules.datagrams import *
from ngi_gevent.testing.contract.rules.ends import *
from ngi_gevent.testing.contract.rules.failing_handlers import *
from ngi_gevent.testing.contract.rules.fairness import *
from ngi_gevent.testing.contract.rules.flow import *
from ngi_gevent.testing.contract.rules.half_close import *
from ngi_gevent.testing.contract.rules.handlers import *
from ngi_gevent.testing.contract.rules.implementations import *
from ngi_gevent.testing.contract.rules.iterators import *
from ngi_gevent.testing.contract.rules.limits import *
from ngi_gevent.testing.contract.rules.listeners import *
from ngi_gevent.testing.contract.rules.output import *
from ngi_gevent.testing.contract.rules.start_tls import *
from ngi_gevent.testing.contract.rules.while_open import *

__all__ = [name for name in dir() if name.startswith("test_")]
