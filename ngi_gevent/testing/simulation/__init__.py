"""Hosts and a network in memory, in virtual time, for tests of failures and of handlers that wait."""

from ngi_gevent.testing.simulation.errors import HostCrashed, NotSimulated, SimulationError, Spins, Stuck
from ngi_gevent.testing.simulation.exploring import FailedSeed, explore, shrink
from ngi_gevent.testing.simulation.host import Host
from ngi_gevent.testing.simulation.simulation import Simulation

__all__ = [
    "FailedSeed",
    "Host",
    "HostCrashed",
    "NotSimulated",
    "Simulation",
    "SimulationError",
    "Spins",
    "Stuck",
    "explore",
    "shrink",
]
