"""The errors of a simulation."""

from __future__ import annotations

from gevent.exceptions import LoopExit

from ngi_gevent.errors import NGIError

__all__ = ["HostCrashed", "NotSimulated", "SimulationError", "Spins", "Stuck"]


class SimulationError(NGIError, RuntimeError):
    """The base of these errors.  It is raised itself if a simulation is used in a way that is not possible."""


class HostCrashed(SimulationError, ConnectionError):
    """A host that has crashed was used, for example by the ``finally`` clause of one of its greenlets."""


class NotSimulated(SimulationError):
    """A call would leave the simulation for a real socket, a native thread, another process, or the real time."""


class Stuck(SimulationError, LoopExit):
    """The test waits, and nothing is left to happen.  The message says where each greenlet waits."""

    # The message of LoopExit is on one line.
    __str__ = Exception.__str__


class Spins(SimulationError):
    """Greenlets run without end: either no time passes, or the loop has made more than ``max_turns`` turns."""
