"""The pytest plugin, in runs of pytest of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngi_gevent.testing import leaks


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on a file of tests: in this process, which is quick, or where nothing is imported yet."""

    def run(text, *arguments, fresh=False):
        pytester.makepyfile(text)
        run = pytester.runpytest_subprocess if fresh else pytester.runpytest_inprocess
        return run("-p", "pytest_ngi_gevent", "-p", "no:cacheprovider", *arguments)

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # another plugin may change the order of tests
    return run


def test_a_test_runs_over_both(run):
    result = run(
        """
        from ngi_gevent import testing

        class Echo:
            def __init__(self, connection):
                connection.set_handler(self)

            def handle_input(self, connection, data):
                connection.write(data.upper())

        def test_echo(ngi_implementation):
            client = testing.Recorder()
            listener = ngi_implementation.listener(None, Echo)
            listener.connect(client)
            client.wait_connected().write(b"hello")
            client.expect(b"HELLO")
            listener.close()

        def test_each(ngi, ngi_network):
            assert ngi.listener(None, Echo).address[0] == "in memory"
            assert ngi_network.listener(None, Echo).address[0] == "127.0.0.1"
            ngi.close()
            ngi_network.close()
        """,
        "-v",
        fresh=True,
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_echo?memory? PASSED*", "*test_echo?network? PASSED*"])


def test_what_a_test_leaves_is_an_error_and_a_failed_test_is_only_a_failure(run, monkeypatch):
    monkeypatch.setattr(leaks, "GRACE", 0.02)
    result = run(
        """
        from ngi_gevent import testing

        def test_forgetful(ngi_implementation):
            ngi_implementation.listener(None, testing.Recorder)

        def test_failing(ngi_implementation):
            ngi_implementation.listener(None, testing.Recorder)
            assert False
        """
    )
    result.assert_outcomes(passed=2, errors=2, failed=2)
    result.stdout.fnmatch_lines(["E*left over:", "E*Listener on ('in memory', 1), accepting*made at *.py:4"])
    result.stdout.fnmatch_lines(["E*left over:", "E*Listener on ('127.0.0.1', *), accepting*made at *.py:4"])
    result.stdout.no_fnmatch_line("*made at *.py:7*")


def test_a_handler_that_raises_fails_the_test_unless_the_test_expects_it(run):
    result = run(
        """
        import gevent
        from ngi_gevent import blocking, testing

        class Server:
            def __init__(self, connection):
                connection.set_handler(self)

            def handle_input(self, connection, data):
                connection.write(b"ok")
                raise RuntimeError("a bug")

        def talk(ngi, server=Server):
            client = testing.Recorder()
            listener = ngi.listener(None, server)
            listener.connect(client)
            client.wait_connected().write(b"x")
            client.expect(b"ok")
            client.wait_closed()
            listener.close()

        def test_swallowed(ngi_implementation):
            talk(ngi_implementation)

        def test_expected(ngi_implementation):
            talk(ngi_implementation)
            assert str(ngi_implementation.raised.pop()) == "a bug"

        def test_swallowed_function(ngi_implementation):
            @blocking.server
            def serve(input, output):
                output.write(b"ok")
                raise RuntimeError("a bug")

            talk(ngi_implementation, serve)

        def test_failing(ngi):
            talk(ngi)
            assert False
        """
    )
    result.assert_outcomes(passed=6, errors=4, failed=1)
    result.stdout.fnmatch_lines(["E *RuntimeError: a bug", "E *AssertionError: a handler raised RuntimeError(*); *"])


def test_the_plugin_imports_nothing_before_it_is_used(run, monkeypatch):
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # coverage imports greenlet
    result = run(
        """
        import sys

        def test_not_imported():
            assert not [name for name in sys.modules if name.split(".")[0] in ("gevent", "ngi_gevent", "greenlet")]

        def test_imported(ngi):
            assert "ngi_gevent" in sys.modules
        """,
        fresh=True,
    )
    result.assert_outcomes(passed=2)


def test_a_failure_shows_the_plans_that_it_met_and_no_others(run):
    result = run(
        """
        from ngi_gevent.testing import Faults, Faulty, Plan

        def test_earlier(ngi):
            Faulty(ngi, Plan((Faults(refused=True),)))

        def test_failing(ngi):
            Faulty(ngi, Plan(datagrams=("lost",)))
            assert False
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Faulty: plans carried out*", "Plan(datagrams=('lost',))"])
    result.stdout.no_fnmatch_line("*refused*")


def test_what_is_left_over_shows_the_plans_too(run):
    result = run(
        """
        from ngi_gevent import testing
        from ngi_gevent.testing import Faulty, Plan

        def test_forgetful(ngi):
            Faulty(ngi, Plan(datagrams=("lost",))).listener(None, testing.Recorder)
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left over:*", "*Faulty: plans carried out*", "Plan(datagrams=('lost',))"])
