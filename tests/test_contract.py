"""The contract, over every implementation in this project, and over implementations that wrap another."""

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
    """The folder that other stages have, too."""
    return folder


#: Quick tests try each way of wrapping over one implementation.  Faulty is a WrappingImplementation.
SLOW_STAGES = [WrappedMemoryStage, WrappedTCPStage, AdaptedMemoryStage, FaultlessTCPStage, *SIMULATIONS]

stage = contract.stages(*params([*STAGES, *WRAPPED_STAGES, *SIMULATIONS], slow=SLOW_STAGES))
pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture(autouse=True)
def short_pauses(no_socket_left, stage, monkeypatch):
    """The rules say what happens after the pauses of the library, not how long these are."""
    if not isinstance(stage, contract.SimulationStage):  # where they take no time
        monkeypatch.setattr(linger, "DISCARD_PAUSE", 0.001)
        monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.02)
