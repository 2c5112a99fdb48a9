"""Sockets from systemd, and notifications to it: real sockets and descriptors, in separate processes."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time

import pages
import programs
import pytest
from certificates import certificate
from programs import EXAMPLES
from stages import PATIENCE, needs_ipv6

from ngi_gevent import systemd

ACTIVATE, ANALYZE = shutil.which("systemd-socket-activate"), shutil.which("systemd-analyze")

#: A program that replaces systemd: it passes descriptors, in order, and becomes another program.
HAND_OVER = """\
import fcntl, os, sys
descriptors, names, command = sys.argv[1].split(), sys.argv[2], sys.argv[3:]
# The copies have high numbers, so none of them is overwritten.
for place, copy in enumerate([fcntl.fcntl(int(number), fcntl.F_DUPFD, 50) for number in descriptors], 3):
    os.dup2(copy, place)
    os.close(copy)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(descriptors)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def handing_over(*things, names=""):
    """Return the beginning of a command that passes sockets or descriptors, and the options to start it with."""
    numbers = [thing if isinstance(thing, int) else thing.fileno() for thing in things]
    return [sys.executable, "-c", HAND_OVER, " ".join(map(str, numbers)), names], {"pass_fds": numbers}


@contextlib.contextmanager
def listening(address=("127.0.0.1", 0)):
    with socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as sock:
        yield sock


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket on which systemd receives notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", sock.getsockname())
        yield sock


def received(manager):
    return manager.recv(1000).decode().split("\n")


def answer_of(sock):
    with socket.create_connection(sock.getsockname()[:2], timeout=PATIENCE) as client:
        client.sendall(b"hello")
        return client.recv(100)


# Sockets from systemd.


@needs_ipv6
def test_the_echo_server_listens_on_all_sockets():
    with listening() as one, listening(("::1", 0)) as other:
        before, options = handing_over(one, other)
        with programs.running("echo_server.py", "--systemd", before=before, **options) as server:
            ports = one.getsockname()[1], other.getsockname()[1]
            assert server.first_line == "listening on 127.0.0.1:{} [::1]:{}\n".format(*ports)
            assert answer_of(one) == answer_of(other) == b"HELLO"
            server.stop()
            assert server.end() == (0, "stopped, ending 0 connections\n", "")
            # The sockets are systemd's, and the next server uses them again.
            with programs.running("echo_server.py", "--systemd", before=before, **options) as server:
                assert answer_of(one) == b"HELLO"


def test_the_echo_server_listens_on_the_socket_with_that_name():
    with listening() as one, listening() as other:
        before, options = handing_over(one, other, names="one.socket:other.socket")
        with programs.running("echo_server.py", "--systemd", "other.socket", before=before, **options) as server:
            assert server.first_line == f"listening on 127.0.0.1:{other.getsockname()[1]}\n"
            assert answer_of(other) == b"HELLO"


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
def test_systemd_itself_passes_a_socket(tmp_path):
    path = str(tmp_path / "echo")
    before = [ACTIVATE, "--listen", path, "--fdname", "echo"]
    command = programs.command("echo_server.py", "--systemd", "echo")
    with subprocess.Popen([*before, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                deadline = time.monotonic() + PATIENCE
                while client.connect_ex(path) and time.monotonic() < deadline:
                    time.sleep(0.001)  # systemd-socket-activate says only on a terminal that it listens
                client.sendall(b"hello")
                assert client.recv(100) == b"HELLO"
            assert process.stdout.readline().decode() == f"listening on {path}\n"
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


def bound(kind):
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


def refused(*arguments, before, **options):
    """Return the exit code of the echo server, and the one line in which it refuses its arguments."""
    # Without -W, Python does not warn about sockets that are open at the end.
    command = [*before, sys.executable, EXAMPLES / "echo_server.py", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    return answer.returncode, line


def test_a_datagram_socket_is_refused():
    with bound(socket.SOCK_DGRAM) as sock:
        before, options = handing_over(sock)
        code, line = refused("--systemd", before=before, **options)
    assert code == 2
    assert "--systemd: a socket to listen on must be a stream socket" in line


def test_a_connection_is_refused():
    """Systemd passes connections if a socket unit has ``Accept=yes``."""
    with listening() as sock, socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
        before, options = handing_over(accepted)
        code, line = refused("--systemd", before=before, **options)
    assert code == 1
    assert "unable to listen on" in line
    assert "Invalid argument" in line


def test_a_descriptor_that_is_not_a_socket_is_refused(tmp_path):
    with open(tmp_path / "file", "w") as file:
        before, options = handing_over(file, names="queue")
        code, line = refused("--systemd", before=before, **options)
    assert code == 2
    assert "--systemd: descriptor 3 ('queue') from systemd is not a socket" in line


def test_a_name_without_a_socket_is_refused():
    with listening() as sock:
        before, options = handing_over(sock, names="echo.socket")
        code, line = refused("--systemd", "other", before=before, **options)
    assert code == 2
    assert "--systemd other: systemd passed no such socket; the names are ['echo.socket']" in line


def test_a_start_without_sockets_is_refused():
    code, line = refused("--systemd", before=[])
    assert code == 2
    assert "--systemd: systemd passed no such socket; the names are []" in line


def test_sockets_of_another_process_are_left_alone(monkeypatch):
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.sockets() == {}
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize("count", ["-1", "two", "", "²"])
def test_a_count_that_is_not_a_number_is_refused(monkeypatch, count):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(ValueError, match=re.escape(f"LISTEN_FDS must be an int >= 0; got {count!r}")):
        systemd.sockets()


CHILD = """\
import os, subprocess, sys
from ngi_gevent import systemd
found = systemd.sockets()
print({name: [sock.getsockname()[1] for sock in sockets] for name, sockets in found.items()}, systemd.sockets())
child = "import os; print([name for name in os.environ if name.startswith('LISTEN_')], os.listdir('/proc/self/fd'))"
sys.stdout.flush()
subprocess.run([sys.executable, "-c", child], close_fds=False)
"""


def test_child_processes_do_not_inherit_the_sockets():
    with listening() as one, listening() as other, listening() as third:
        before, options = handing_over(one, other, third, names="a:b:a")
        program = [*before, sys.executable, "-c", CHILD]
        said = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=True, **options).stdout
        ports = [sock.getsockname()[1] for sock in (one, other, third)]
    first, second = said.splitlines()
    assert first == f"{{'a': [{ports[0]}, {ports[2]}], 'b': [{ports[1]}]}} {{}}"
    names, descriptors = second.split("] ")
    assert names == "["
    assert not {"3", "4", "5"} - {"3"} & set(re.findall(r"\d+", descriptors))  # the listing itself uses 3


# The units on the page.


def units(page):
    """Return the units on *page*, by their names."""
    blocks = pages.blocks(pages.DOCS / "how_to" / page)
    return {block.options["caption"]: block.text for block in blocks if block.language == "ini"}


PAGE = pages.DOCS / "how_to" / "systemd.md"
UNITS = units("systemd.md")


def values(unit):
    """Return the assignments of a unit, with continued lines joined."""
    return dict(re.findall(r"^(\w+)=(.*)$", UNITS[unit].replace("\\\n", ""), re.MULTILINE))


def test_the_unit_starts_the_echo_server_and_leaves_it_time_to_stop():
    service = values("echo.service")
    _, program, *arguments = service["ExecStart"].split()
    assert program.endswith("/echo_server.py")
    options = runpy.run_path(str(EXAMPLES / "echo_server.py"))["parser"]().parse_args(arguments)
    assert options.systemd == ""
    assert options.idle_timeout > 0
    assert int(service["TimeoutStopSec"]) > options.close_timeout


@pytest.mark.slow
@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("page", ["systemd.md", "processes.md"])
def test_systemd_finds_no_mistake_in_the_units(tmp_path, page):
    for unit, text in units(page).items():
        (tmp_path / unit).write_text(re.sub(r"(?<==)/\S+/bin/\S+", sys.executable, text))
    command = [ANALYZE, "verify", *(f"./{unit}" for unit in units(page))]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_rates_the_unit_as_safe(tmp_path):
    (tmp_path / "echo.service").write_text(UNITS["echo.service"])
    # The threshold stands for 2.0 out of 10.
    command = [ANALYZE, "security", "--offline=true", "--threshold=20", "./echo.service"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert answer.returncode == 0, answer.stdout


# Notifications.


def test_systemd_is_notified_when_the_echo_server_is_ready_and_stops(manager):
    with programs.running("echo_server.py", "--bind", "127.0.0.1:0") as server:
        assert received(manager) == ["READY=1"]
        server.connect().close()
        server.stop()
        assert received(manager) == ["STOPPING=1"]
        assert server.end()[0] == 0


def test_systemd_is_notified_when_the_echo_server_reloads(manager, tmp_path):
    pem = tmp_path / "server.pem"
    certificate("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    with programs.running("echo_server.py", "--bind", "127.0.0.1:0", "--certificate", str(pem)) as server:
        assert received(manager) == ["READY=1"]
        for content in pem.read_bytes(), b"":
            pem.write_bytes(content)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            server.stop(signal.SIGHUP)
            state, when = received(manager)
            assert state == "RELOADING=1"
            assert before <= int(when.removeprefix("MONOTONIC_USEC=")) < before + PATIENCE * 1_000_000
            assert received(manager) == ["READY=1"]


def test_systemd_is_not_notified_by_a_server_that_cannot_listen(manager):
    with listening() as sock:
        answer = programs.run("echo_server.py", "--bind", f"127.0.0.1:{sock.getsockname()[1]}")
    assert answer.returncode == 1
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_the_watchdog_is_notified_until_a_handler_does_not_yield(manager, monkeypatch):
    code = (
        "import time, gevent\n"
        "from ngi_gevent import systemd\n"
        "systemd.watchdog()\n"
        "gevent.sleep(0.05)\n"
        "systemd.notify('STATUS=busy')\n"
        "time.sleep(0.2)\n"
        "systemd.notify('STATUS=over')\n"
        "gevent.sleep(1000)\n"
    )
    monkeypatch.setenv("WATCHDOG_USEC", "10000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            assert received(manager) == ["WATCHDOG=1"]
            assert received(manager) == ["WATCHDOG=1"]
            while received(manager) != ["STATUS=busy"]:
                pass
            assert received(manager) == ["STATUS=over"]
            assert received(manager) == ["WATCHDOG=1"]
        finally:
            process.kill()


def test_the_watchdog_survives_a_lack_of_descriptors(manager, monkeypatch):
    code = (
        "import os, resource, gevent\n"
        "from ngi_gevent import systemd\n"
        "systemd.watchdog()\n"
        "gevent.sleep(0.02)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1, hard))\n"
        "assert not systemd.notify('STATUS=without')\n"
        "gevent.sleep(0.05)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "systemd.notify('STATUS=again')\n"
        "gevent.sleep(1000)\n"
    )
    monkeypatch.setenv("WATCHDOG_USEC", "10000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        try:
            while (message := received(manager)) != ["STATUS=again"]:
                assert message == ["WATCHDOG=1"]
            assert received(manager) == ["WATCHDOG=1"]
        finally:
            process.kill()
        assert b"Too many open files" in process.stderr.read()


@pytest.mark.parametrize("period", ["0", "-1", "soon"])
def test_a_period_that_is_not_a_number_is_refused(monkeypatch, period):
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ValueError, match=re.escape(f"WATCHDOG_USEC must be an int >= 1; got {period!r}")):
        systemd.watchdog()


def test_the_watchdog_of_another_process_is_left_alone(monkeypatch, manager):
    monkeypatch.setenv("WATCHDOG_USEC", "not read")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    systemd.watchdog()


def test_an_abstract_socket_can_be_notified(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0ngi-" + os.urandom(8).hex())
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + sock.getsockname()[1:].decode())
        assert systemd.notify("READY=1", "STATUS=it serves")
        assert received(sock) == ["READY=1", "STATUS=it serves"]


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify("READY=1")
    with systemd.reloading():
        pass


def test_a_missing_systemd_is_logged(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not systemd.notify("READY=1")
    (record,) = caplog.records
    assert record.name == "ngi_gevent.systemd"
    assert re.search(r"unable to notify systemd at '.*gone' of READY=1: .*No such file", record.getMessage())


def test_a_systemd_that_does_not_read_is_logged(monkeypatch, manager, caplog):
    monkeypatch.setattr(systemd, "NOTIFY_TIMEOUT", 0.01)
    with contextlib.suppress(BlockingIOError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.setblocking(False)
        while True:
            full.sendto(b"", manager.getsockname())
    assert not systemd.notify("READY=1")
    assert "timed out" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["gevent.monkey.patch_all()", "pass"])
def test_sockets_and_notifications_work_monkey_patched(manager, patch):
    with listening() as sock:
        code = (
            f"import gevent.monkey; {patch}\n"
            "import ngi_gevent\n"
            "from ngi_gevent import systemd\n"
            "(((sock,),),) = [systemd.sockets().values()]\n"
            "ngi_gevent.listener(sock, lambda connection: (connection.write(b'HELLO'), connection.close()))\n"
            "systemd.notify('READY=1')\n"
            "ngi_gevent.wait()\n"
        )
        before, options = handing_over(sock)
        with subprocess.Popen([*before, sys.executable, "-W", "error", "-c", code], **options) as process:
            try:
                assert received(manager) == ["READY=1"]
                assert answer_of(sock) == b"HELLO"
            finally:
                process.kill()
