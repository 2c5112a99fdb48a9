"""Tests in the messages of failures, which reproduce the failure when pasted into a file."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["name_of", "pasted"]


def pasted(function: str, server: Any, test: str) -> str:
    """Return a test that calls *function* of ngi_gevent.testing on *server*.  Its lines are *test*."""
    return f"from ngi_gevent.testing import {function}\n{_named(server)[1]}\n\ndef test_input_in_pieces():\n{test}\n"


def name_of(server: Any) -> str:
    """Return the name of *server* in the test."""
    return _named(server)[0]


def _named(server: Any) -> tuple[str, str]:
    """Return the name of *server* in a test, and a line that imports it or that the user must complete."""
    name, module = getattr(server, "__qualname__", ""), getattr(server, "__module__", "")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is server:
        return name, f"from {module} import {name.partition('.')[0]}\n"
    name = name.rpartition(".")[2]
    if not name.isidentifier():
        name = "server"
    return name, f"\n{name} = ...  # the server that was checked\n"
