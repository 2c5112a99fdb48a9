"""The example server as users run it: a process that serves, stops on signals, and refuses invalid options."""

from __future__ import annotations

import functools
import os
import re
import runpy
import select
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import programs
import pytest
from certificates import AUTHORITY, certificate, client_context
from cryptography.hazmat.primitives import serialization
from programs import EXAMPLES, Server, read_all
from stages import PATIENCE, needs_ipv6

from ngi_gevent import testing

NC = shutil.which("nc")


def running(*arguments: str) -> AbstractContextManager[Server]:
    return programs.running("echo_server.py", "--bind", "127.0.0.1:0", *arguments)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for the tests that do not stop it."""
    with running() as server:
        yield server


def refused(server: Server) -> bool:
    try:
        server.connect().close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset if it was connected while the listener closed
        return True
    return False


def test_the_server_prints_its_address_and_answers(server):
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+\n", server.first_line)
    with server.connect() as client:
        client.sendall(b"hello out there")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"HELLO OUT THERE"


@pytest.mark.skipif(NC is None, reason="nc is not installed")
def test_nc_gets_its_answer(server):
    host, port = server.address.split(":")
    for _ in range(20):
        answer = subprocess.run([NC, "-N", host, port], input=b"hello out there", capture_output=True, timeout=30)
        assert answer.stdout == b"HELLO OUT THERE"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server(signal_number):
    with running() as server:
        server.stop(signal_number)
        assert server.end() == (0, "stopped, ending 0 connections\n", "")


def test_clients_can_finish_before_the_server_ends():
    with running() as server, server.connect() as client:
        client.sendall(b"one")
        assert client.recv(100) == b"ONE"
        server.stop()
        while not refused(server):
            pass
        client.sendall(b"two")
        assert client.recv(100) == b"TWO"
        client.close()
        assert server.end() == (0, "stopped, ending 0 connections\n", "")


def test_clients_that_do_not_finish_in_time_are_disconnected():
    with running("--close-timeout", "0.1") as server, server.connect() as client:
        client.sendall(b"one")
        assert client.recv(100) == b"ONE"
        began = time.monotonic()
        server.stop()
        assert client.recv(100) == b""
        assert 0.1 <= time.monotonic() - began < 10
        assert server.end() == (0, "stopped, ending 1 connection\n", "")


def test_a_second_signal_ends_the_server_at_once():
    with running("--close-timeout", "1000") as server, server.connect() as client:
        client.sendall(b"one")
        assert client.recv(100) == b"ONE"
        server.stop()
        while not refused(server):
            pass
        server.stop()
        assert server.end() == (128 + signal.SIGTERM, "", "")


def test_clients_beyond_max_connections_wait():
    with running("--max-connections", "1") as server, server.connect() as first, server.connect() as second:
        second.sendall(b"second")
        for _ in range(10):
            first.sendall(b"first")
            assert first.recv(100) == b"FIRST"
        assert not select.select([second], [], [], 0.05)[0]
        first.close()
        assert second.recv(100) == b"SECOND"
        server.stop()
        second.close()
        code, _, err = server.end()
        assert code == 0
        assert len([line for line in err.splitlines() if "max_connections" in line]) == 1


def health_of(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: echo\r\n\r\n".encode())
        return read_all(client).partition(b"\r\n")[0]


def test_health_checks_are_answered_at_max_connections_and_during_shutdown():
    with running("--health", "127.0.0.1:0", "--max-connections", "1") as server, server.connect() as client:
        line = server.process.stdout.readline().decode()
        port = int(re.fullmatch(r"health checks on 127\.0\.0\.1:(\d+)\n", line)[1])
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
        assert health_of(port, "/alive") == health_of(port, "/ready") == b"HTTP/1.0 200 OK"
        server.stop()
        while not refused(server):
            pass
        assert health_of(port, "/alive") == b"HTTP/1.0 200 OK"
        assert health_of(port, "/ready") == b"HTTP/1.0 503 Service Unavailable"
        client.close()
        assert server.end()[:2] == (0, "stopped, ending 0 connections\n")


def test_a_health_address_in_use_gives_one_clear_error_line(server):
    answer = run("--bind", "127.0.0.1:0", "--health", server.address)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1


def test_a_health_check_can_arrive_in_pieces():
    health = runpy.run_path(str(EXAMPLES / "echo_server.py"))["Health"]
    for stopping in False, True:
        server = functools.partial(health, lambda now=stopping: now)
        testing.check_chunking(server, b"GET /ready HTTP/1.1\r\na: b\r\n\r\n")


def test_an_idle_client_is_disconnected():
    with running("--idle-timeout", "0.1", "--verbose") as server, server.connect() as client:
        client.sendall(b"one")
        assert client.recv(100) == b"ONE"
        assert client.recv(100) == b""
        client.close()
        server.stop()
        assert "idle_timeout" in server.end()[2]


def test_the_server_listens_on_a_unix_socket(tmp_path):
    path = str(tmp_path / "echo")
    with programs.running("echo_server.py", "--bind", path) as server:
        assert server.first_line == f"listening on {path}\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        server.stop()
        assert server.end()[0] == 0
        assert not os.path.exists(path)


@needs_ipv6
def test_the_server_listens_on_ipv6():
    with programs.running("echo_server.py", "--bind", "[::1]:0") as server:
        assert re.fullmatch(r"listening on \[::1\]:\d+\n", server.first_line)
        with server.connect() as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"


def test_verbose_logs_connections():
    with running("--verbose") as server:
        with server.connect() as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        server.stop()
        code, _, err = server.end()
        assert code == 0
        assert re.search(r"connection with \('127\.0\.0\.1', \d+\) accepted", err)
        assert "ended: end of input" in err


@pytest.fixture
def pem(tmp_path):
    """The path of a file with a certificate and its key."""
    path = tmp_path / "server.pem"
    certificate("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


def secured(server: Server) -> ssl.SSLSocket:
    """Return a client's connection over TLS."""
    return client_context().wrap_socket(server.connect(), server_hostname="localhost")


def test_on_sighup_the_server_loads_its_certificate_again(pem):
    with running("--certificate", str(pem)) as server, secured(server) as first:
        renewed = AUTHORITY.issue_cert("localhost")
        renewed.private_key_and_cert_chain_pem.write_to_path(pem)
        with secured(server) as client:
            assert client.getpeercert() == first.getpeercert()
        server.stop(signal.SIGHUP)
        assert server.process.stdout.readline().decode() == f"loaded {pem}\n"
        with secured(server) as client:
            assert client.getpeercert() != first.getpeercert()
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        first.sendall(b"hello")
        assert first.recv(100) == b"HELLO"


def test_a_certificate_that_does_not_match_its_key_is_not_loaded(pem):
    mixed = certificate("localhost").private_key_pem.bytes() + AUTHORITY.issue_cert("x").cert_chain_pems[0].bytes()
    with running("--certificate", str(pem)) as server:
        pem.write_bytes(mixed)
        server.stop(signal.SIGHUP)
        line = server.process.stderr.readline().decode()
        assert str(pem) in line
        assert "key values mismatch" in line
        with secured(server) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"


def encrypted_key() -> bytes:
    key = serialization.load_pem_private_key(certificate("localhost").private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "PEM"),
        (AUTHORITY.cert_pem.bytes() + certificate("localhost").private_key_pem.bytes(), "key values mismatch"),
        (certificate("localhost").cert_chain_pems[0].bytes() + encrypted_key(), "SSL"),
    ],
    ids=["missing", "empty", "does not match", "encrypted"],
)
def test_an_invalid_certificate_gives_one_clear_error_line(content, words, tmp_path):
    path = tmp_path / "server.pem"
    if content is not None:
        path.write_bytes(content)
    answer = run("--bind", "127.0.0.1:0", "--certificate", str(path))
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert f"--certificate {path}: " in line
    assert words in line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run("echo_server.py", *arguments)


@pytest.fixture
def parser():
    return runpy.run_path(str(EXAMPLES / "echo_server.py"))["parser"]()


@pytest.fixture
def refusal(parser, capsys):
    """A function that runs the server with an invalid command, and returns its one error line."""

    def refusal(argument: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([argument])
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return refusal


@pytest.mark.parametrize(
    "address",
    ["8000", "localhost", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", ":8000", "::1:8000", ""],
)
def test_an_invalid_address_gives_one_clear_error_line(address, refusal):
    assert address in refusal(f"--bind={address}")


@pytest.mark.parametrize("option", ["--close-timeout", "--idle-timeout"])
@pytest.mark.parametrize("timeout", ["-1", "soon", "nan"])
def test_an_invalid_timeout_gives_one_clear_error_line(option, timeout, refusal):
    assert f"seconds must be a number >= 0; got {timeout!r}" in refusal(f"{option}={timeout}")


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", "²"])
def test_an_invalid_number_of_connections_gives_one_clear_error_line(number, refusal):
    assert f"connections must be an int >= 1; got {number!r}" in refusal(f"--max-connections={number}")


@pytest.mark.parametrize("address", ["8000", "..:80"])  # the second is found invalid only when the server listens
def test_an_invalid_command_ends_the_server(address):
    answer = run(f"--bind={address}")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1
    assert address in answer.stderr


def test_an_address_in_use_gives_one_clear_error_line(server):
    answer = run("--bind", server.address)
    port = server.address.split(":")[1]
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert re.fullmatch(rf"[^\n]*WARNING[^\n]*unable to listen on [^\n]*{port}[^\n]*in use[^\n]*\n", answer.stderr)


def test_a_host_that_does_not_resolve_gives_one_clear_error_line():
    answer = run("--bind", "no-such-host.invalid:8000")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "no-such-host.invalid" in answer.stderr


def test_help_shows_each_option(parser, capsys):
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    out, err = capsys.readouterr()
    assert err == ""
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert len(options) > 8
    for word in "upper case", "SIGTERM", "nc -N", "127.0.0.1:8000", *options:
        assert word in out


@pytest.mark.slow
def test_a_client_that_sends_much_before_it_reads_uses_no_memory_of_the_server():
    """With any echo server, such a client gets everything back or stalls.  This client reads when it stalls."""
    data = os.urandom(1 << 20).upper() * 10
    with running() as server, server.connect() as client:
        before = resident_bytes(server.process.pid)
        client.setblocking(False)
        sent = 0
        while sent < len(data):
            if not select.select([], [client], [], 1)[1]:
                break  # nothing was accepted for a second: the server waits until this client reads
            sent += client.send(data[sent : sent + 65536])
        assert resident_bytes(server.process.pid) - before < 8 << 20
        client.setblocking(True)
        sender = threading.Thread(target=client.sendall, args=[data[sent:]])
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += client.recv(1 << 20)
        sender.join()
        assert received == data.upper()
        assert resident_bytes(server.process.pid) - before < 8 << 20


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_plain_clients_are_served_at_once():
    """The clients are blocking sockets in threads, without greenlets.  Each gets its own answers."""

    def talk(number: int) -> None:
        with server.connect() as client, client.makefile("rwb") as file:
            for turn in range(10):
                line = f"client {number} turn {turn} ".encode() * 100 + b"\n"
                file.write(line)
                file.flush()
                if file.readline() != line.upper():
                    return
        right.append(number)

    right: list[int] = []
    with running() as server:
        threads = [threading.Thread(target=talk, args=[number]) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(right) == list(range(20))
        server.stop()
        assert server.end() == (0, "stopped, ending 0 connections\n", "")
