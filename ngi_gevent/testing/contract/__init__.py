"""The contract for others: whoever writes an implementation, or an adapter, can run ours over it, with pytest.

In ``conftest.py``, say what to play on::

    from ngi_gevent.testing import contract

    class MyStage(contract.SocketStage):
        name = "mine"

        def make(self):
            return my_package.Implementation()

    stage = contract.stages(MyStage)

and in a file of tests, have the rules, which are tests of that ``stage``::

    from ngi_gevent.testing.contract.rules import *

A stage is derived from ``SocketStage``, whose peers are plain sockets, or from ``MemoryStage``, where nothing takes
time.  An adapter that changes nothing of what passes through it is tried over any implementation: see ``Adapted``.
"""

import pytest

from ngi_gevent.testing.contract.adapted import Adapted
from ngi_gevent.testing.contract.stage import (
    PATIENCE,
    DatagramWitness,
    MemoryStage,
    SocketStage,
    Stage,
    Witness,
    playing,
    stages,
)

__all__ = [
    "PATIENCE",
    "Adapted",
    "DatagramWitness",
    "MemoryStage",
    "SocketStage",
    "Stage",
    "Witness",
    "playing",
    "stages",
]

# Have a failing rule show the values that it compared, as any test does.
pytest.register_assert_rewrite("ngi_gevent.testing.contract.rules")
