"""The contract, tested on every implementation in this project, and on implementations that wrap others."""

from __future__ import annotations

import pytest
from stages import (
    SIMULATIONS,
    STAGES,
    WRAPPED_STAGES,
    AdaptedMemoryStage,
    FaultlessTCPStage,
    WrappedMemoryStage,
    WrappedTCPStage,
    params,
)

from ngi_gevent.sockets import linger, probe
from ngi_gevent.testing import contract
from ngi_gevent.testing.contract.rules import *  # noqa: F403


@pytest.fixture(scope="module")
def tmp_path(folder):
    """The folder that the other stages use, too."""
    return folder


#: Tests that are not slow try each kind of wrapper over one implementation.  Faulty is a WrappingImplementation.
SLOW_STAGES = [WrappedMemoryStage, WrappedTCPStage, AdaptedMemoryStage, FaultlessTCPStage, *SIMULATIONS]

stage = contract.stages(*params([*STAGES, *WRAPPED_STAGES, *SIMULATIONS], slow=SLOW_STAGES))
pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture(autouse=True)
def short_pauses(no_socket_left, stage, monkeypatch):
    """Shorten the library's pauses.  The rules test what happens after a pause, not how long it is."""
    if not isinstance(stage, contract.SimulationStage):  # in a simulation, pauses take no real time
        monkeypatch.setattr(linger, "DISCARD_PAUSE", 0.001)
        monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.02)
