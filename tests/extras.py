"""Modules of the package that need an extra: their tests are skipped if the extra is not installed."""

from __future__ import annotations

import pytest

#: Modules, and the third-party package that each needs.
NEEDS = {"ngi_gevent.gunicorn": "gunicorn"}


def skip_unless_installed(name: str) -> None:
    """Skip a test that imports *name*, a module or a member of one, if the import is not possible."""
    for module, package in NEEDS.items():
        if f"{name}.".startswith(f"{module}."):
            pytest.importorskip(package, reason=f"{package} is not installed")
