"""The errors of a simulation."""

from __future__ import annotations

from gevent.exceptions import LoopExit

from ngi_gevent.errors import NGIError

__all__ = ["HostCrashed", "NotSimulated", "SimulationError", "Spins", "Stuck"]


class SimulationError(NGIError, RuntimeError):
    """The root of these errors, and itself a use of a simulation that is not possible."""


class HostCrashed(SimulationError, ConnectionError):
    """A host that has crashed was used, for example by the ``finally`` clause of one of its greenlets."""


class NotSimulated(SimulationError):
    """A call would leave the simulation: for a real socket, a native thread, another process, or the real time."""


class Stuck(SimulationError, LoopExit):
    """The test waits, and nothing can happen any more.  The message says what each greenlet waits for."""

    # That of LoopExit is on one line.
    __str__ = Exception.__str__


class Spins(SimulationError):
    """Greenlets run without end: either no time passes, or there was no end to it after very many turns of the loop."""
