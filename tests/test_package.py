"""The names that the package exports, and its exceptions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections import Counter

import pytest
from extras import skip_unless_installed

import ngi_gevent
import ngi_gevent.adapters
import ngi_gevent.blocking
import ngi_gevent.sockets.stream
import ngi_gevent.testing
import ngi_gevent.testing.contract.rules
from ngi_gevent.interfaces import IImplementation

PUBLIC = (ngi_gevent, ngi_gevent.adapters, ngi_gevent.blocking, ngi_gevent.interfaces, ngi_gevent.testing)
MODULES = [name for _, name, _ in pkgutil.walk_packages(ngi_gevent.__path__, "ngi_gevent.")]


@pytest.mark.parametrize("name", ["ngi_gevent", *MODULES])
def test_all_lists_only_names_that_exist(name):
    skip_unless_installed(name)
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [missing for missing in module.__all__ if not hasattr(module, missing)] == []
    assert module.__doc__


def test_the_contract_has_the_rules_of_every_file():
    """No file is left out, and no rule replaces another one of the same name."""
    rules = ngi_gevent.testing.contract.rules
    files = [importlib.import_module(f"{rules.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(rules.__path__)]
    in_files = [name for file in files for name in file.__all__ if name.startswith("test_")]
    assert sorted(in_files) == sorted(rules.__all__)


@pytest.mark.parametrize(
    "implementation", [ngi_gevent.Implementation, ngi_gevent.testing.Implementation, IImplementation]
)
def test_the_parameter_of_a_listener_is_called_server(implementation):
    """The name is the same in the protocol and in both implementations."""
    assert list(inspect.signature(implementation.listener).parameters)[2] == "server"


def test_only_implementations_share_the_name_of_a_class():
    names = Counter(name for public in PUBLIC for name in public.__all__ if isinstance(getattr(public, name), type))
    assert [name for name, count in names.items() if count > 1] == ["Implementation"]


def test_testing_does_not_import_pytest():
    program = "import sys, ngi_gevent.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_package_exports_every_exception():
    assert set(ngi_gevent.errors.__all__) <= set(ngi_gevent.__all__)
    for name in ngi_gevent.errors.__all__:
        assert issubclass(getattr(ngi_gevent, name), ngi_gevent.NGIError)


@pytest.mark.parametrize(
    "thing",
    [
        ngi_gevent.testing.Connection,
        ngi_gevent.sockets.stream.StreamConnection,
        ngi_gevent.adapters.Base,
        ngi_gevent.testing.Listener,
        ngi_gevent.sockets.listener.StreamListener,
        ngi_gevent.Implementation,
        ngi_gevent.testing.Implementation,
    ],
)
def test_every_public_method_has_a_docstring(thing):
    # For calls between modules of the package.
    internal = {"stop", "has_unfinished_output", "connection_gone", "handler_raised"}
    public = {name: method for name, method in inspect.getmembers(thing, inspect.isfunction) if name[0] != "_"}
    assert len(public) > 3
    assert {name for name, method in public.items() if not inspect.getdoc(method)} <= internal


def test_exceptions_derive_from_more_general_ones():
    assert issubclass(ngi_gevent.ConnectionClosed, ValueError)
    assert issubclass(ngi_gevent.Timeout, TimeoutError)
    assert issubclass(ngi_gevent.ConnectionTimeout, ngi_gevent.ConnectionFailed)
    assert issubclass(ngi_gevent.ConnectionTimeout, ngi_gevent.Timeout)


@pytest.mark.parametrize("kind", [ngi_gevent.ConnectionFailed, ngi_gevent.ConnectionTimeout])
def test_a_failed_connection_keeps_its_reason(kind):
    reason = OSError(111, "refused")
    error = kind(reason)
    assert error.reason is reason
    assert "refused" in str(error)
