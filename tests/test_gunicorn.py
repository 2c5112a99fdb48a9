"""The real gunicorn as the process manager: its signals and settings, and its messages about mistakes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from certificates import AUTHORITY, certificate, new_client_context
from gunicorns import ROOT, ask, command, environment, read_line, running
from load import Load
from pages import DOCS
from stages import PATIENCE

import ngi_gevent

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

from gunicorn.config import Config

from ngi_gevent.gunicorn import SETTINGS, check_application, graceful_seconds, listen_options, trusted_networks

SERVED = Path(__file__).with_name("served.py")
ANY = ("-b", "127.0.0.1:0")


@pytest.fixture
def directory(tmp_path):
    """A directory with the application, ``app.py``."""
    shutil.copy(SERVED, tmp_path / "app.py")
    return tmp_path


def closed(directory):
    """Return the reasons that handlers got."""
    path = directory / "closed"
    return path.read_text().splitlines() if path.exists() else []


def change(directory):
    """Change the application.  The new source has another size, so Python compiles it again even within the same
    second.
    """
    (directory / "app.py").write_text(SERVED.read_text().replace("VERSION = 1", "VERSION = 22"))


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


# Decisions that need no process.


@pytest.mark.parametrize("application", [Echo, ngi_gevent.Service(Echo), print, lambda connection, again=False: None])
def test_a_server_is_an_application(application):
    check_application(application, "app:server")


@pytest.mark.parametrize(
    ("application", "name", "message"),
    [
        (
            lambda environ, start_response: None,
            "app:wsgi",
            "^app:wsgi must be a callable that takes a connection; got .*lambda> at .*>$",
        ),
        (lambda: Echo, "app:make", "write 'app:make\\(\\)'$"),
        (lambda: Echo, "app:make()", "at .*>$"),
        (ngi_gevent.Service(lambda: Echo), "app:service", "at .*>$"),
    ],
)
def test_an_application_of_another_kind_is_refused(application, name, message):
    with pytest.raises(TypeError, match=message.replace("lambda> at .*", "").replace("at .*>$", ">$")):
        check_application(application, name)


@pytest.mark.parametrize(("timeout", "seconds"), [(30, 29), (4, 3), (2, 1.5), (0, 0)])
def test_a_worker_ends_its_connections_before_the_master_kills_it(timeout, seconds):
    assert graceful_seconds(timeout) == seconds


def settings(**values):
    cfg = Config()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


def test_settings_become_options_of_the_listener():
    cfg = settings(backlog=7, worker_connections=3)
    service = ngi_gevent.Service(Echo, idle_timeout=5)
    assert listen_options(cfg, service) == {"backlog": 7, "max_connections": 3, "idle_timeout": 5}
    assert listen_options(settings(worker_connections=0), Echo)["max_connections"] is None


def test_a_hook_that_does_not_return_its_context_is_refused():
    cfg = settings(certfile="cert.pem", keyfile="key.pem", ssl_context=lambda conf, make_context: None)
    with pytest.raises(TypeError, match="the hook ssl_context must return an SSLContext; got None"):
        listen_options(cfg, Echo)


@pytest.mark.parametrize(
    ("allowed", "networks"),
    [
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1", "unix"]),
        (["10.0.0.0/8"], ["10.0.0.0/8", "unix"]),
        (["*"], ["0.0.0.0/0", "::/0", "unix"]),
        ([ipaddress.ip_network("10.0.0.0/8")], ["10.0.0.0/8", "unix"]),  # the form that gunicorn 24 has
        ([], ["unix"]),
    ],
)
def test_proxies_that_gunicorn_trusts_are_trusted(allowed, networks):
    assert trusted_networks(allowed) == networks
    value = ",".join(map(str, allowed))
    for mode in "v1", "v2", "auto":
        cfg = settings(proxy_protocol=mode, proxy_allow_ips=value)
        assert listen_options(cfg, Echo)["proxy_protocol"] == trusted_networks(cfg.proxy_allow_ips)
    assert "proxy_protocol" not in listen_options(settings(proxy_allow_ips=value), Echo)


def test_a_service_refuses_an_option_that_is_a_setting():
    assert ngi_gevent.interfaces.ListenOptions.__annotations__.keys() >= SETTINGS.keys()
    for option in SETTINGS:
        with pytest.raises(TypeError, match=f"^{option} cannot be set by the Service app:echo; use gunicorn's"):
            check_application(ngi_gevent.Service(Echo, **{option: None}), "app:echo")


def test_the_reference_lists_the_options_that_are_settings():
    page = (DOCS / "reference" / "gunicorn.md").read_text()
    rows = re.findall(r"^\| .* \| (.*) \|$", page.partition("## Settings and options of listener")[2], re.MULTILINE)
    options = {option for row in rows if "`limits`" not in row for option in re.findall(r"`(\w+)(?:=[^`]*)?`", row)}
    assert options >= SETTINGS.keys()


# Signals.


@pytest.mark.slow
def test_workers_share_addresses_and_their_number_changes_on_signals(directory):
    with running(directory, *ANY, "-b", "unix:x.sock", "-w", 2, "--error-logfile", "log", "app:Server") as gunicorn:
        wait_until(lambda: "Listening at" in (directory / "log").read_text() if (directory / "log").exists() else False)
        two = gunicorn.workers(2, path="x.sock")
        gunicorn.send(signal.SIGTTIN)
        three = two | gunicorn.workers(1, before=two, path="x.sock")
        gunicorn.send(signal.SIGTTOU)  # this signal ends the oldest worker
        wait_until(lambda: sum(map(is_alive, three)) == 2)
        left = {pid for pid in three if is_alive(pid)}
        assert two - left

        os.kill(left.pop(), signal.SIGKILL)
        assert gunicorn.workers(1, before=three, path="x.sock")

        (directory / "log").rename(directory / "log.1")
        gunicorn.send(signal.SIGUSR1)
        wait_until(lambda: (directory / "log").exists())

        def worker_has_opened_it():
            assert gunicorn.ask("nonsense", "x.sock") == ""
            return "ValueError: nonsense" in (directory / "log").read_text()

        wait_until(worker_has_opened_it)
        assert gunicorn.end() == 0
        assert not (directory / "x.sock").exists()


@pytest.mark.slow
def test_on_hup_the_old_worker_finishes_a_request_while_new_workers_serve(directory):
    with running(directory, *ANY, "-w", 2, "app:Server") as gunicorn:
        assert gunicorn.ask("version") == "1"
        old = gunicorn.workers(2)
        with gunicorn.connect() as client:
            assert ask(client, "wait 2") == "waiting"
            change(directory)
            gunicorn.send(signal.SIGHUP)
            assert gunicorn.workers(2, before=old)
            wait_until(lambda: gunicorn.ask("version") == "22")
            assert read_line(client) == "done"
            assert ask(client, "version") == "1"
            assert int(ask(client, "pid")) in old
        wait_until(lambda: not any(map(is_alive, old)))
        assert gunicorn.end() == 0
        assert not [line for line in gunicorn.log if "ERROR" in line or "WARNING" in line]


@pytest.mark.slow
def test_under_load_no_answer_is_lost_on_hup_and_on_term(directory):
    with running(directory, *ANY, "-w", 2, "app:Echo") as gunicorn:
        load = Load(gunicorn.address)
        for number in range(1, 3):
            load.wait_for(load.answered + 200)
            gunicorn.send(signal.SIGHUP)
            gunicorn.says("Worker exiting", count=2 * number)
        load.wait_for(load.answered + 200)
        assert load.refused == 0
        gunicorn.send(signal.SIGTERM)
        load.join()
        assert load.wrong == []
        assert gunicorn.end(None) == 0
        assert not [line for line in gunicorn.log if "ERROR" in line or "WARNING" in line]


@pytest.mark.slow
def test_on_usr2_a_new_master_starts_with_the_same_sockets(directory):
    with running(directory, *ANY, "--pid", "pid", "app:Server") as gunicorn:
        (old,) = gunicorn.workers(1)
        with gunicorn.connect() as client:
            assert ask(client, "wait 1") == "waiting"
            gunicorn.send(signal.SIGUSR2)
            gunicorn.says("Booting worker", count=2)
            gunicorn.send(signal.SIGTERM)
            assert gunicorn.workers(1, before={old})
            assert read_line(client) == "done"
        gunicorn.process.wait(PATIENCE)
        gunicorn.says("Master has been promoted")
        assert gunicorn.workers(1, before={old})


@pytest.mark.slow
def test_on_usr2_a_new_master_that_cannot_start_does_not_affect_the_old_one(directory):
    with running(directory, *ANY, "--pid", "pid", "app:Server") as gunicorn:
        (old,) = gunicorn.workers(1)
        (directory / "app.py").write_text("class Server(")
        gunicorn.send(signal.SIGUSR2)
        gunicorn.says("unable to load app:Server: SyntaxError")
        gunicorn.says("Shutting down: Master.2")
        assert int(gunicorn.ask("pid")) == old
        assert gunicorn.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("work", ["wait 60", "compute 60"])
def test_on_int_and_quit_the_master_does_not_wait(directory, number, work):
    with running(directory, *ANY, "app:Server") as gunicorn:
        with gunicorn.connect() as idle, gunicorn.connect() as busy:
            assert ask(idle, "pid")
            busy.sendall(work.encode())
            if work.startswith("wait"):
                assert read_line(busy) == "waiting"
            else:
                wait_until((directory / "computing").exists)
            assert gunicorn.end(number) == 0
            assert idle.recv(10) == b""
        assert "stopped" in closed(directory)


@pytest.mark.slow
def test_on_term_a_client_has_the_graceful_timeout_to_finish(directory):
    with running(directory, *ANY, "--graceful-timeout", 4, "app:Server") as gunicorn:
        with gunicorn.connect() as client, gunicorn.connect() as idle:
            assert ask(client, "wait 0.5") == "waiting"
            assert ask(idle, "pid")
            gunicorn.send(signal.SIGTERM)
            assert read_line(client) == "done"
            client.close()
            assert idle.recv(10) == b""
        assert gunicorn.end(None) == 0
        gunicorn.says(r"WARNING.*Worker graceful timeout .*connections ended: 1$")
        assert sorted(closed(directory)) == ["end of input", "stopped"]
        assert not [line for line in gunicorn.log if "SIGKILL" in line]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_right_after_the_fork_is_not_lost(directory, number):
    (directory / "gunicorn.conf.py").write_text(
        "import os\n"
        "def post_fork(server, worker):\n"
        "    if worker.age == 1:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
    )
    with running(directory, *ANY, "app:Server") as gunicorn:
        gunicorn.says("Worker exiting")
        gunicorn.says("Booting worker", count=2)
        assert gunicorn.workers(1)
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_workers_end_without_their_master(directory):
    with running(directory, *ANY, "app:Server") as gunicorn:
        (pid,) = gunicorn.workers(1)
        gunicorn.process.kill()
        wait_until(lambda: not is_alive(pid))
        assert "Parent changed" in "\n".join(gunicorn.log)


# Settings.


@pytest.mark.slow
def test_only_a_handler_that_computes_too_long_ends_its_worker(directory):
    with running(directory, *ANY, "--timeout", 2, "app:Server") as gunicorn:
        (pid,) = gunicorn.workers(1)
        with gunicorn.connect() as waiting:
            assert ask(waiting, "wait 3") == "waiting"
            assert read_line(waiting) == "done"
            assert int(ask(waiting, "pid")) == pid
            assert gunicorn.ask("compute 60") == ""
            assert waiting.recv(10) == b""
        gunicorn.says(f"WORKER TIMEOUT .pid:{pid}")
        gunicorn.says("served.py|app.py")  # the line at which the handler computed
        assert gunicorn.workers(1, before={pid})
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_max_requests_counts_connections(directory):
    with running(directory, *ANY, "--max-requests", 3, "app:Server") as gunicorn:
        with gunicorn.connect() as client:
            first = int(ask(client, "pid"))
            assert [int(gunicorn.ask("pid")) for _ in range(2)] == [first, first]
            gunicorn.says(r"Worker restarts .*connections served: 3 \(max_requests\)")
            assert ask(client, "version") == "1"  # the connection stays open
        assert gunicorn.workers(1, before={first})
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_worker_connections_is_max_connections_of_each_worker(directory):
    with running(directory, *ANY, "--worker-connections", 1, "app:Server") as gunicorn:
        with gunicorn.connect() as first, gunicorn.connect() as second:
            second.sendall(b"version")
            assert ask(first, "version") == "1"
            gunicorn.says("WARNING.*max_connections")
            first.close()
            assert read_line(second) == "1"
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_certificate_settings_and_the_ssl_hook_enable_tls(directory):
    server = certificate("localhost")
    server.private_key_pem.write_to_path(directory / "key.pem")
    server.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    AUTHORITY.cert_pem.write_to_path(directory / "ca.pem")
    (directory / "gunicorn.conf.py").write_text(
        "import ssl\n"
        "def ssl_context(conf, make_context):\n"
        "    context = make_context()\n"
        "    context.maximum_version = ssl.TLSVersion.TLSv1_2\n"
        "    return context\n"
    )
    files = [
        "--keyfile",
        "key.pem",
        "--certfile",
        "cert.pem",
        "--ca-certs",
        "ca.pem",
        "--cert-reqs",
        int(ssl.CERT_REQUIRED),
    ]
    with running(directory, *ANY, *files, "app:Server") as gunicorn:
        context = new_client_context()
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # the client has no certificate
            context.wrap_socket(gunicorn.connect(), server_hostname="localhost")
        certificate("client@example.org").configure_cert(context)
        with context.wrap_socket(gunicorn.connect(), server_hostname="localhost") as client:
            assert ask(client, "tls") == "TLSv1.2"
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_an_allowed_proxy_names_the_client_in_a_proxy_header(directory):
    header = b"PROXY TCP4 198.51.100.7 192.0.2.1 50100 8000\r\n"
    with running(directory, *ANY, "-b", "unix:x.sock", "--proxy-protocol", "--", "app:Server") as gunicorn:
        for path in None, "x.sock":
            with gunicorn.connect(path) as client:
                client.sendall(header)
                assert ask(client, "peer") == "('198.51.100.7', 50100)"
        assert gunicorn.end() == 0
    with running(
        directory, *ANY, "--proxy-protocol=auto", "--proxy-allow-from", "10.0.0.0/8", "app:Server"
    ) as gunicorn:
        with gunicorn.connect() as client, contextlib.suppress(ConnectionResetError):
            client.sendall(header)
            assert ask(client, "peer") == ""
        gunicorn.says("INFO.*ngi_gevent.connection: .*no valid PROXY header: ")
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_an_application_can_be_preloaded(directory):
    with running(directory, *ANY, "-w", 2, "--preload", "app:Server") as gunicorn:
        workers = gunicorn.workers(2)
        assert int(gunicorn.ask("loaded")) == gunicorn.process.pid
        assert int(gunicorn.ask("thread")) in workers  # a forked worker lacks the threads of the master's hub
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_a_preloaded_application_that_has_started_processes_can_start_more(directory):
    (directory / "processes.py").write_text(
        "from gevent import subprocess\n"
        "subprocess.check_output(['true'])\n"
        "def server(connection):\n"
        "    connection.write(subprocess.check_output(['echo', 'done']))\n"
        "    connection.close()\n"
    )
    with running(directory, *ANY, "--preload", "--graceful-timeout", 1, "processes:server") as gunicorn:
        with gunicorn.connect() as client:
            assert read_line(client) == "done"
        assert gunicorn.end() == 0


@pytest.mark.slow
def test_changed_files_are_loaded_and_a_syntax_error_waits_for_its_correction(directory):
    with running(directory, *ANY, "--reload", "--reload-engine", "poll", "app:Server") as gunicorn:
        assert gunicorn.ask("version") == "1"

        def change_is_seen():
            # The file is written again and again, because gunicorn ignores a change before its first check.
            (directory / "app.py").write_text("class Server(\n")
            return any("SyntaxError" in line for line in gunicorn.log)

        wait_until(change_is_seen)
        with gunicorn.connect() as client:  # this client waits until the file is correct
            client.sendall(b"version")
            while not select.select([client], [], [], 0.2)[0]:
                change(directory)
            assert read_line(client) == "22"
        assert gunicorn.end() == 0


def in_place_of_three(sock, *arguments):
    """Return a command that gets *sock* as descriptor 3, as systemd would pass it."""
    line = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    return {"command": ["bash", "-c", line, "bash", *command(*arguments)], "pass_fds": [sock.fileno()]}


@pytest.mark.slow
def test_sockets_passed_by_systemd_are_served(directory):
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.settimeout(PATIENCE)
    notified.bind(str(directory / "notify"))
    with notified, socket.create_server(("127.0.0.1", 0)) as sock:
        options = in_place_of_three(sock, "app:Server")
        options["env"] = environment(NOTIFY_SOCKET=str(directory / "notify"))
        with running(directory, **options) as gunicorn:
            assert notified.recv(100).startswith(b"READY=1")
            assert gunicorn.address == sock.getsockname()
            assert gunicorn.ask("version") == "1"
            assert gunicorn.end() == 0


@pytest.mark.slow
def test_statsd_counts_connections(directory):
    with socket.socket(type=socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(PATIENCE)
        host, port = statsd.getsockname()
        received = []

        def receive_until(*beginnings):
            while not all(any(datagram.startswith(start) for datagram in received) for start in beginnings):
                received.append(statsd.recv(1000).decode())

        with running(directory, *ANY, "--statsd-host", f"{host}:{port}", "app:Server") as gunicorn:
            gunicorn.ask("version")
            receive_until("gunicorn.workers:1|g", "gunicorn.requests:1|c", "gunicorn.request.duration:")
            gunicorn.ask("nonsense")
            receive_until("gunicorn.log.error:1|c")
            assert gunicorn.end() == 0


IDLE = "nothing was received or sent for 0.1 seconds (idle_timeout)"


@pytest.mark.slow
@pytest.mark.parametrize("application", ["app:make('hello')", "app:impatient"])
def test_an_application_can_also_be_a_factory_or_a_service(directory, application):
    with running(directory, *ANY, application) as gunicorn:
        with gunicorn.connect() as client:
            assert read_line(client) == ("hello" if "make" in application else "")
        assert gunicorn.end() == 0
    assert closed(directory) == ([] if "make" in application else [IDLE])


# Monkey-patching.

PATCHED = ("-k", "ngi_gevent.gunicorn.PatchedWorker")


@pytest.mark.slow
def test_the_application_is_imported_in_a_patched_worker(directory):
    with running(directory, *ANY, *PATCHED, "app:Server") as gunicorn:
        assert gunicorn.ask("patched") == "True"
        with gunicorn.connect() as idle, gunicorn.connect() as client:
            assert ask(idle, "pid")
            assert ask(client, "wait 60") == "waiting"
            assert gunicorn.end(signal.SIGQUIT) == 0
        assert not [line for line in gunicorn.log if "Traceback" in line or "Warning" in line]
        assert "stopped" in closed(directory)


@pytest.mark.slow
def test_a_preloaded_application_is_patched_in_the_configuration(directory):
    (directory / "gunicorn.conf.py").write_text("from gevent import monkey\nmonkey.patch_all()\n")
    with running(directory, *ANY, *PATCHED, "--preload", "-w", 2, "app:Server") as gunicorn:
        old = gunicorn.workers(2)
        assert gunicorn.ask("patched") == "True"
        assert int(gunicorn.ask("loaded")) == gunicorn.process.pid
        with gunicorn.connect() as client:
            assert ask(client, "wait 1") == "waiting"
            gunicorn.send(signal.SIGHUP)
            assert gunicorn.workers(2, before=old)
            assert read_line(client) == "done"
        assert gunicorn.end() == 0


# Mistakes of users.


def refused(directory, *arguments, **options):
    """Run a gunicorn that must fail.  Return the exit code, and the log without the lines that every end has."""
    line = options.pop("command", None) or command(*ANY, *arguments)
    result = subprocess.run(
        line, cwd=directory, env=environment(), capture_output=True, text=True, timeout=PATIENCE, **options
    )
    usual = ["[INFO]", "exited with code", "Shutting down", "Reason:"]
    lines = [line for line in result.stderr.splitlines() if line and not any(word in line for word in usual)]
    return result.returncode, lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing:Server"], 4, "unable to load nothing:Server: ModuleNotFoundError: No module named 'nothing'"),
        (["app:Nothing"], 4, "Failed to find attribute 'Nothing' in 'app'."),
        (["app:VERSION"], 4, "Application object must be callable."),
        (["app:wsgi"], 4, "app:wsgi must be a callable that takes a connection; got <function wsgi"),
        (["app:no_server"], 4, "; for a factory, write 'app:no_server()'"),
        (
            ["app:too_long"],
            4,
            "max_connections cannot be set by the Service app:too_long; use gunicorn's worker_c",
        ),
        (["app:backwards"], 3, "unable to listen: ValueError: idle_timeout must be a number of seconds >= 0; got -1"),
        (
            ["--certfile", "app.py", "app:Server"],
            3,
            "unable to use certfile 'app.py': SSLError",
        ),
        (["--keyfile", "app.py", "app:Server"], 3, "unable to use keyfile 'app.py': TypeError: certfile should be"),
        ([*PATCHED, "--preload", "app:Server"], 3, "call gevent.monkey.patch_all() at the top of gunicorn.conf.py"),
    ],
)
def test_a_mistake_gives_one_log_line_and_an_exit_code(directory, arguments, code, said):
    actual, lines = refused(directory, *arguments)
    assert (actual, len(lines)) == (code, 1), lines
    assert said in lines[0]


@pytest.mark.slow
def test_an_exception_of_the_application_is_logged_with_its_line(directory):
    (directory / "mistake").touch()
    code, (line,) = refused(directory, "app:Server")
    assert code == 4
    number = SERVED.read_text().splitlines().index('    {}["DATABASE"]') + 1
    assert line.endswith(f"unable to load app:Server: KeyError: 'DATABASE' ({directory / 'app.py'}, line {number})")


@pytest.mark.slow
@pytest.mark.parametrize("exception", ["SystemExit", "gevent.GreenletExit"])
def test_an_application_that_exits_during_its_import_ends_gunicorn(directory, exception):
    (directory / "exits.py").write_text(f"import gevent\nraise {exception}('DATABASE_URL is not set')\n")
    code, (line,) = refused(directory, "exits:Server")
    assert code == 4
    name = exception.rpartition(".")[2]
    assert f"unable to load exits:Server: {name}: DATABASE_URL is not set ({directory / 'exits.py'}, line 2)" in line


@pytest.mark.slow
def test_a_signal_ends_a_worker_during_the_import_of_its_application(directory):
    (directory / "slow.py").write_text("from pathlib import Path\nPath('importing').touch()\nwhile True:\n    pass\n")
    with running(directory, *ANY, "slow:Server") as gunicorn:
        wait_until((directory / "importing").exists)
        assert gunicorn.end(signal.SIGINT) == 0
        assert not [line for line in gunicorn.log if "ERROR" in line]


@pytest.mark.slow
def test_certificates_that_do_not_match_are_refused(directory):
    certificate("localhost").cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate("client@example.org").private_key_pem.write_to_path(directory / "key.pem")
    code, (line,) = refused(directory, "--certfile", "cert.pem", "--keyfile", "key.pem", "app:Server")
    assert code == 3
    assert "unable to use certfile 'cert.pem', keyfile 'key.pem'" in line
    assert "match" in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_of_the_wrong_kind_are_refused(directory, kind):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(directory / "socket"))
        code, (line,) = refused(directory, **in_place_of_three(sock, "app:Server"))
        assert code == 1
        expected = f"gunicorn must bind stream sockets; got one on '{directory / 'socket'}'"
        assert line == f"Error: LISTEN_FDS: descriptor 3: {expected}"
        code, (line,) = (
            refused(directory, command=command("-b", f"fd://{sock.fileno()}", "app:Server"), pass_fds=[sock.fileno()])
            if kind == socket.SOCK_SEQPACKET
            else (3, ["gunicorn must bind stream sockets"])  # in this case, gunicorn itself fails
        )
        assert code == 3
        assert "gunicorn must bind stream sockets" in line


@pytest.mark.slow
def test_a_connection_from_systemd_is_refused(directory):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        code, (line,) = refused(directory, **in_place_of_three(sock, "app:Server"))
        assert code == 1
        assert f"must not be connected; got one to {server.getsockname()!r}; remove Accept=yes" in line


@pytest.mark.slow
@pytest.mark.parametrize("count", ["some", "-1"])
def test_an_invalid_number_of_sockets_is_refused(directory, count):
    line = f'LISTEN_PID=$$ LISTEN_FDS={count} exec "$@"'
    code, (said,) = refused(directory, command=["bash", "-c", line, "bash", *command("app:Server")])
    assert (code, said) == (1, f"Error: LISTEN_FDS must be an int >= 0; got '{count}'")


@pytest.mark.slow
@pytest.mark.parametrize(("level", "levels"), [("debug", {"DEBUG", "INFO"}), ("info", {"INFO"})])
def test_loggers_have_the_level_of_gunicorn(directory, level, levels):
    with running(directory, *ANY, "--log-level", level, "app:Server") as gunicorn:
        assert gunicorn.ask("version") == "1"
        assert gunicorn.end() == 0
    assert {match[1] for line in gunicorn.log if (match := re.search(r"\[(\w+)\] ngi_gevent", line))} == levels


# Measurements.


@pytest.mark.slow
def test_the_ratio_of_two_workers_to_one_is_measured(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.workers", "--rounds=2", "--seconds=0.1", "--output", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (said.stdout, said.stderr) == (f"written to {tmp_path / 'workers.md'}\n", "")
    page = (tmp_path / "workers.md").read_text()
    assert [workers for workers, _ in re.findall(r"^\| (\d) \| ([\d,]+) \|$", page, re.MULTILINE)] == ["1", "2"]
    assert re.search(r"^Ratio: \*\*\d\.\d\d\*\*\.", page, re.MULTILINE)
    assert "load runs on the same machine" in page
