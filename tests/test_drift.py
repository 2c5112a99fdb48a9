"""The contract detects implementations that do not keep it: each one here breaks it in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = """
from ngi_gevent import testing
from ngi_gevent.testing import contract
from ngi_gevent.testing.faults.wrapping import WrappingConnection, WrappingImplementation


class Drifted(WrappingConnection):
    {drift}


class Implementation(WrappingImplementation):
    def wrap(self, connection, control):
        return Drifted(connection, control)


class DriftedStage(contract.MemoryStage):
    name = "drifted"

    def make(self):
        return Implementation(super().make())


stage = contract.stages(DriftedStage)
"""

DRIFTS = {
    "nothing": ("pass", None),
    "writing after the close is accepted": (
        """
    def write(self, data):
        if self.connection:
            self.connection.write(data)
        """,
        "test_a_closing_and_a_closed_connection_refuse_writes_and_ignore_close",
    ),
    "handle_close comes twice": (
        """
    def handle_close(self, connection, reason):
        super().handle_close(connection, reason)
        super().handle_close(connection, reason)
        """,
        "test_an_end_comes_once_after_all_input",
    ),
    "close drops the output": (
        """
    def close(self):
        self.connection.abort()
        """,
        "test_close_delivers_pending_output_before_the_peer_receives_the_end",
    ),
    "abort is orderly": (
        """
    def abort(self):
        self.connection.close()
        """,
        "test_abort_resets_the_connection_for_the_peer",
    ),
    "callbacks nest": (
        """
    def write(self, data):
        self.connection.write(data)
        turns = self.connection._turns
        if turns.running:  # others have their turn in the middle of a callback
            turns.running = False
            turns.run()
        """,
        "test_callbacks_of_one_connection_do_not_nest",
    ),
    "reasons are exceptions": (
        """
    def handle_close(self, connection, reason):
        super().handle_close(connection, OSError(str(reason)))
        """,
        "test_an_end_comes_once_after_all_input",
    ),
    "data that is not bytes is accepted": (
        """
    def write(self, data):
        self.connection.writelines(iter([data]))
        """,
        "test_write_accepts_nothing_else",
    ),
    "an empty write is a message": (
        """
    def write(self, data):
        self.connection.write(bytes(data) or b"?")
        """,
        "test_empty_data_is_not_sent",
    ),
    "a later handler is ignored": (
        """
    def set_handler(self, handler):
        if self._handler is None:
            super().set_handler(handler)
        """,
        "test_a_later_handler_gets_the_input_from_then_on",
    ),
    "handle_close comes after ones own close": (
        """
    def close(self):
        handler, self.connection_was_open = self._handler, bool(self.connection)
        self.connection.close()
        if self.connection_was_open and handler is not None:
            handler.handle_close(self, "closed by yourself")
        """,
        "test_no_callback_comes_after_close_from_this_side",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIFTS)
def test_the_contract_detects_a_drift(pytester, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    drift, caught_by = DRIFTS[name]
    pytester.makeconftest(CONFTEST.format(drift=drift.strip()))
    pytester.makepyfile(test_contract="from ngi_gevent.testing.contract.rules import *")
    rule = [] if caught_by is None else ["-k", caught_by]
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-rf", *rule)
    outcomes = result.parseoutcomes()
    if caught_by is None:
        assert "failed" not in outcomes
        assert outcomes["passed"] >= 100
    else:
        assert outcomes["failed"] > 0
        result.stdout.fnmatch_lines([f"FAILED test_contract.py::{caught_by}*"])
