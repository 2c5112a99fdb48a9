"""The network of a simulation: it does what that of the system does."""

from __future__ import annotations

import socket

import pytest
from kernels import program, run

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])


@FAMILIES
def test_streams_do_what_those_of_the_system_do(family):
    for seed in range(30):
        assert run(family, program(seed)) is None, seed


@FAMILIES
@pytest.mark.slow
def test_streams_do_what_those_of_the_system_do_at_length(family):
    for seed in range(1000, 2000):
        assert run(family, program(seed, 20)) is None, seed
