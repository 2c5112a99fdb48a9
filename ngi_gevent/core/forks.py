"""Forked processes: a child has copies of its parent's descriptors, and must not use their connections.

A child can close its copy of a descriptor.  A ``shutdown``, a socket option or a message of TLS would reach the
connection itself, and end it for the parent.
"""

from __future__ import annotations

import os

__all__ = ["children", "generation"]

_generation = _children = 0


def generation() -> int:
    """Return how many forks led to this process.  The number differs from the parent's."""
    return _generation


def children() -> int:
    """Return how often this process has forked.  Each child can hold the descriptors that were open then."""
    return _children


def _in_child() -> None:
    global _generation, _children
    _generation += 1
    _children = 0


def _in_parent() -> None:
    global _children
    _children += 1


os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)
