"""Modules of the package that need an extra: their tests are skipped if it is not installed."""

from __future__ import annotations

import pytest

#: The package that each needs.
NEEDS = {"ngi_gevent.gunicorn": "gunicorn"}


def skip_unless_installed(name: str) -> None:
    """Skip a test that imports *name*, a module or a name in it, if it cannot be imported."""
    for module, package in NEEDS.items():
        if f"{name}.".startswith(f"{module}."):
            pytest.importorskip(package, reason=f"{package} is not installed")
