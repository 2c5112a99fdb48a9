"""The contract as a suite of tests, for pytest: run it over your own implementation or adapter.

In ``conftest.py``, define the stage::

    from ngi_gevent.testing import contract

    class MyStage(contract.SocketStage):
        name = "mine"

        def make(self):
            return my_package.Implementation()

    stage = contract.stages(MyStage)

In a file of tests, import the rules, which are tests of that ``stage``::

    from ngi_gevent.testing.contract.rules import *

A stage is a subclass of one of three classes.  The peers of ``SocketStage`` are plain sockets.  The peers of
``SimulationStage`` are plain sockets of a simulation.  In ``MemoryStage``, nothing takes time.  ``Adapted`` tests an
adapter that passes everything through unchanged, over any implementation.
"""

import pytest

from ngi_gevent.testing.contract.adapted import Adapted
from ngi_gevent.testing.contract.simulated import SimulationStage
from ngi_gevent.testing.contract.stage import PATIENCE, MemoryStage, SocketStage, Stage, playing, stages
from ngi_gevent.testing.contract.witness import DatagramWitness, Witness

__all__ = [
    "PATIENCE",
    "Adapted",
    "DatagramWitness",
    "MemoryStage",
    "SimulationStage",
    "SocketStage",
    "Stage",
    "Witness",
    "playing",
    "stages",
]

# A failing rule shows the values that it compared, as any test does.
pytest.register_assert_rewrite("ngi_gevent.testing.contract.rules")
