"""The example RESP server: in memory, in a simulation, and with the clients of Redis.  The tests need hiredis."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import gevent
import programs
import pytest

from ngi_gevent import testing
from ngi_gevent.testing.simulation import Simulation

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(monkeypatch):
    pytest.importorskip("hiredis")
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    from resp_server import redis_server

    return lambda connection: redis_server({})(connection)


def packed(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


CONVERSATION = packed(b"SET", b"a", b"1") + packed(b"incr", b"a") + packed(b"GET", b"a") + packed(b"DEL", b"a", b"b")
ANSWER = b"+OK\r\n:2\r\n$1\r\n2\r\n:1\r\n"


def test_commands_are_answered_in_order(serve):
    assert testing.converse(serve, [CONVERSATION]).data == ANSWER


def test_answers_do_not_depend_on_how_commands_are_cut(serve):
    testing.check_chunking(serve, CONVERSATION)


@pytest.mark.parametrize(
    "mistake",
    [
        *(b"hello\r\n", b"*1\r\n:1\r\n", b"*0\r\n", b"$5\r\nhello\r\n", b"*1\r\n*1\r\n$1\r\na\r\n"),
        *(b"#f\r\n", b"%1\r\n*0\r\n*0\r\n"),  # values of RESP 3: false, and a map with a list as its key
    ],
)
def test_an_invalid_command_ends_the_connection(serve, mistake):
    answer = testing.converse(serve, [mistake + packed(b"PING")])
    assert answer.data == b"-ERR Protocol error\r\n"
    assert answer.closed == "end of input"


def test_commands_before_an_invalid_one_are_answered(serve):
    answer = testing.converse(serve, [CONVERSATION + b"hello\r\n" + packed(b"PING")])
    assert answer.data == ANSWER + b"-ERR Protocol error\r\n"


def test_the_commands_before_an_exception_are_answered(serve, monkeypatch):
    import resp_server

    monkeypatch.setattr(resp_server.Commands, "get", lambda *_: 1 // 0)
    listener = testing.listener(None, serve)
    client = testing.Recorder()
    listener.connect(client)
    client.connection.write(packed(b"SET", b"a", b"1") + packed(b"GET", b"a"))
    assert (client.data, client.closed) == (b"+OK\r\n", "end of input")


def test_a_number_with_too_many_digits_is_not_an_integer(serve):
    conversation = packed(b"SET", b"a", b"9" * 4300) + packed(b"INCR", b"a") + packed(b"PING")
    assert testing.converse(serve, [conversation]).data == b"+OK\r\n-ERR value is not an integer\r\n+PONG\r\n"


def test_many_commands_are_answered_in_order(serve):
    numbers = range(1, 1001)
    answer = testing.converse(serve, [b"".join(packed(b"INCR", b"a") for _ in numbers)])
    assert answer.data == b"".join(b":%d\r\n" % number for number in numbers)


def test_long_answers_wait_for_a_client_that_does_not_read(serve):
    """Long answers are not joined: at most 128 KiB are pending, and one more answer."""
    with Simulation() as simulation:
        listener = simulation.host("server").listener(("server", 6379), serve)
        client = testing.Recorder()
        simulation.host("client").connect(("server", 6379), client)
        connection = client.wait_connected()
        connection.write(packed(b"SET", b"a", b"x" * 100_000))
        client.expect(b"+OK\r\n")
        connection.pause_reading()
        connection.write(packed(b"GET", b"a") * 200)
        gevent.sleep(10)
        (served,) = listener.connections()
        assert 0 < served.output_pending < 250_000
        connection.resume_reading()
        client.expect(b"".join([b"$100000\r\n", b"x" * 100_000, b"\r\n"]) * 200)


@pytest.mark.parametrize("command", [[b"nonsense"], [b"GET"], [b"GET", b"a", b"b"], [b"SET", b"a"]])
def test_an_unknown_or_incomplete_command_gets_an_error(serve, command):
    data = testing.converse(serve, [packed(*command) + packed(b"PING")]).data
    assert data.startswith(b"-ERR ")
    assert data.endswith(b"\r\n+PONG\r\n")


def test_a_command_that_is_too_long_ends_the_connection(serve, monkeypatch):
    import resp_server

    monkeypatch.setattr(resp_server, "MAX_COMMAND", 100)
    answer = testing.converse(serve, [b"*2\r\n$3\r\nGET\r\n$1000\r\n" + b"x" * 100])
    assert (answer.data, answer.closed) == (b"-ERR Protocol error\r\n", "end of input")


def test_commands_are_answered_in_a_simulation(serve):
    for seed in range(20):
        with Simulation(seed) as simulation:
            simulation.host("server").listener(("server", 6379), serve)
            client = testing.Recorder()
            simulation.host("client").connect(("server", 6379), client)
            client.wait_connected().write(CONVERSATION)
            client.expect(ANSWER)


# Real clients.


@pytest.fixture
def port():
    pytest.importorskip("hiredis")
    with programs.running("resp_server.py", "--port", 0) as server:
        yield server.port


def run(*command: Any) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli_gets_answers(port):
    assert run("redis-cli", "-p", port, "set", "colour", "blue").strip() == "OK"
    assert run("redis-cli", "-p", port, "get", "colour").strip() == "blue"
    assert run("redis-cli", "-p", port, "incr", "colour").strip() == "ERR value is not an integer"


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark is not installed")
@pytest.mark.parametrize("pipelined", [1, 16])
def test_redis_benchmark_completes(port, pipelined):
    output = run("redis-benchmark", "-p", port, "-q", "-t", "set,get,incr", "-n", 20_000, "-c", 50, "-P", pipelined)
    assert output.count("requests per second") == 3


def test_redis_py_gets_answers(port):
    redis = pytest.importorskip("redis")
    with redis.Redis(port=port, protocol=2) as client:
        assert client.set("a", b"x" * 100_000)
        assert client.get("a") == b"x" * 100_000
        assert client.get("b") is None
        assert client.delete("a", "b") == 1
        pipeline = client.pipeline(transaction=False)
        for number in range(1000):
            pipeline.set(str(number), number)
            pipeline.get(str(number))
        assert pipeline.execute()[1::2] == [b"%d" % number for number in range(1000)]
