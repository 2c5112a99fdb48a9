"""The machine, and the versions of the measured packages."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent

LIBRARIES = ("ngi_gevent", "gevent", "greenlet", "uvloop", "twisted", "hiredis", "h11")


def described() -> dict[str, str]:
    """The facts about the place and time of a run, by name."""
    revision = _revision()
    versions = {library: _version(library) for library in LIBRARIES}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        **({"revision": revision} if revision else {}),
        **{library: found for library, found in versions.items() if found},
    }


def _revision() -> str | None:
    """The commit of this checkout; None outside of a git repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
