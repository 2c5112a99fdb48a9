"""Iterables for the tests of discarded output."""

from __future__ import annotations


class Unbegun:
    """An iterator that must never start.  It appends to *closed* when it is closed."""

    def __init__(self, closed):
        self._closed = closed

    def __iter__(self):
        return self

    def __next__(self):
        raise AssertionError("it began")

    def close(self):
        self._closed.append(True)
