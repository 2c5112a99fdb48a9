"""The pytest plugin, in separate runs of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngi_gevent.testing import leaks


@pytest.fixture
def run(pytester, monkeypatch):
    """A function that runs pytest on a file of tests: in this process, which is fast, or in a fresh one."""

    def run(text, *arguments, fresh=False):
        pytester.makepyfile(text)
        run = pytester.runpytest_subprocess if fresh else pytester.runpytest_inprocess
        return run("-p", "pytest_ngi_gevent", "-p", "no:cacheprovider", *arguments)

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # another plugin may change the order of tests
    return run


def test_a_test_runs_on_each_implementation(run):
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
    result.assert_outcomes(passed=6)
    ways = ["memory", "network", "seed0", "seed1", "seed2"]
    result.stdout.fnmatch_lines([f"*test_echo?{way}? PASSED*" for way in ways])


def test_leftovers_are_an_error_unless_the_test_has_failed(run, monkeypatch):
    monkeypatch.setattr(leaks, "GRACE", 0.02)
    result = run(
        """
        from ngi_gevent import testing

        def test_forgetful(ngi_implementation):
            ngi_implementation.listener(None, testing.Recorder)

        def test_failing(ngi_implementation):
            ngi_implementation.listener(None, testing.Recorder)
            assert False
        """,
        "--ngi-seeds=1",
    )
    result.assert_outcomes(passed=3, errors=3, failed=3)
    result.stdout.fnmatch_lines(["E*left over:", "E*Listener on ('in memory', 1), accepting*made at *.py:4"])
    result.stdout.fnmatch_lines(["E*left over:", "E*Listener on ('127.0.0.1', *), accepting*made at *.py:4"] * 2)
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
        """,
        "--ngi-seeds=1",
    )
    result.assert_outcomes(passed=9, errors=6, failed=1)
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


def test_a_failure_shows_the_plans_of_its_test_and_no_others(run):
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


def test_a_report_of_leftovers_shows_the_plans_too(run):
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


RACE = """
        import gevent
        import pytest

        def test_race(simulation):
            order = []

            def work(number):
                for _ in range(5):
                    gevent.sleep(1)
                    order.append(number)

            gevent.joinall([gevent.spawn(work, number) for number in range(2)])
            assert order[2:4] != [1, 0], "overtaken"
"""


def test_each_seed_is_a_separate_item(run):
    text = """
        import pytest

        seeds = []

        def test_unmarked(simulation):
            seeds.append(simulation.seed)

        @pytest.mark.ngi_seeds(2)
        def test_marked(simulation):
            assert seeds == [0, 1, 2] or len(seeds) == 1

        @pytest.fixture
        def begun(simulation):
            return simulation.now()

        def test_through_a_fixture(begun):
            assert begun == 0
    """
    result = run(text, "-v")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*test_unmarked?seed0? PASSED*", "*test_marked?seed1? PASSED*"])
    run(text, "--ngi-seeds=1").assert_outcomes(passed=3)
    result = run(text, "--ngi-replay=9", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_marked?seed9? PASSED*"])


def test_a_failure_shows_its_seed_its_replay_and_its_last_state(run):
    result = run(RACE, "--ngi-seeds=30", "-x", "-m", "not slow")
    result.assert_outcomes(failed=1, passed=result.parseoutcomes()["passed"])
    [command] = [line for line in result.outlines if line.startswith("pytest ")]
    seed = command.rpartition("[seed")[2].partition("]")[0]
    file = "test_a_failure_shows_its_seed_its_replay_and_its_last_state.py"
    assert command == f"pytest '{file}::test_race[seed{seed}]' --ngi-replay={seed} -m 'not slow'"
    result.stdout.fnmatch_lines(["*- simulation -*", f"seed {seed}; replay it with", "the greenlets at the end:"])
    result.stdout.no_fnmatch_line("*shrunk*")

    result = run(RACE, f"--ngi-replay={seed}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- simulation, shrunk -*", "draws that are needed: 1 of *", "* choose *s*: 1"])
    replay = [line for line in result.outlines if line.startswith("pytest ")][-1].rpartition("=")[2]
    assert replay.startswith(f"{seed}:s")

    result = run(RACE, f"--ngi-replay={replay}")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*shrunk*")
    run(RACE, f"--ngi-replay={seed}:").assert_outcomes(passed=1)


def test_the_fixtures_of_a_test_are_new_in_each_run_of_shrinking(run):
    result = run(
        """
        import pytest

        made = []

        @pytest.fixture
        def thing(simulation):
            made.append([])
            yield made[-1]
            made[-1].append("ended")

        def test_thing(thing):
            assert thing == []
            thing.append("used")
            assert all(one == ["used", "ended"] for one in made[:-1])
            raise ValueError
        """,
        "--ngi-replay=3",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["draws that are needed: 0 of 0*", "*also fails under seed 0"])


def test_a_test_that_does_not_depend_only_on_the_seed_is_reported(run):
    result = run(
        """
        runs = []

        def test_once(simulation):
            runs.append(1)
            assert len(runs) > 1
        """,
        "--ngi-replay=3",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the test depends on something that no seed decides"])


def test_an_exception_of_a_greenlet_is_an_error_unless_the_test_has_failed(run):
    result = run(
        """
        import gevent

        def test_swallowed(simulation):
            gevent.spawn(int, "x").join()

        def test_expected(simulation):
            gevent.spawn(int, "x").join()
            assert isinstance(simulation.raised.pop(), ValueError)

        def test_failing(simulation):
            gevent.spawn(int, "y").join()
            assert False
        """,
        "--ngi-seeds=1",
    )
    result.assert_outcomes(passed=2, errors=1, failed=1)
    result.stdout.fnmatch_lines(["E *ValueError: *'x'", "a handler or a greenlet raised ValueError(*'y'*"])


def test_failures_and_replays_write_timelines(run, pytester):
    text = (
        RACE
        + """
        def test_passing(simulation):
            simulation.host("server")
            gevent.sleep(1)
    """
    )
    run(text, "--ngi-seeds=30", "-x", "--ngi-timeline=pages/new")
    [page] = (pytester.path / "pages" / "new").iterdir()
    assert page.name.startswith("test_failures_and_replays_write_timelines.py-test_race-seed")
    assert "<!DOCTYPE html>" in page.read_text()
    run(text, "--ngi-replay=1", "--ngi-timeline=pages", "-k", "passing")
    [page] = (pytester.path / "pages").glob("*.html")
    assert page.name == "test_failures_and_replays_write_timelines.py-test_passing-seed1.html"
    assert "<td>start</td>" in page.read_text()
    assert "<td>crash</td>" not in page.read_text()


def test_another_fixture_with_the_same_name_is_left_alone(run):
    result = run(
        """
        import pytest

        @pytest.fixture
        def simulation():
            return "other"

        def test_other(simulation):
            assert simulation == "other"

        class TestOurs:
            @pytest.fixture
            def simulation(self, request):
                return "again other"

            def test(self, simulation):
                assert simulation == "again other"
        """
    )
    result.assert_outcomes(passed=2)
    result = run(
        """
        import pytest

        @pytest.fixture
        def simulation(simulation):
            simulation.compute(5)
            return simulation

        def test_ours(simulation):
            assert simulation.now() == 5
        """,
        "-v",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*seed2*PASSED*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ngi-seeds=0"], "*--ngi-seeds must be an int >= 1; got 0"),
        (["--ngi-seeds=many"], "*--ngi-seeds: invalid int value: 'many'"),
        (["--ngi-replay=many"], "*--ngi-replay: a replay must be a seed, *; got 'many'"),
        (["--ngi-replay=1", "--ngi-seeds=1"], "*--ngi-seeds and --ngi-replay exclude each other*"),
        (["--ngi-timeline=file"], "*--ngi-timeline must be a folder; got 'file', which is a file"),
    ],
)
def test_options_are_checked(run, pytester, arguments, message):
    (pytester.path / "file").touch()
    result = run("", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


@pytest.mark.parametrize("mark", ["ngi_seeds(0)", "ngi_seeds(n=3)"])
def test_the_mark_is_checked(run, mark):
    result = run(f"import pytest\n@pytest.mark.{mark}\ndef test(simulation): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ngi_seeds takes one argument, an int >= 1; got Mark(*"])
