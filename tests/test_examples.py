"""The examples, each run as a process and used by clients.

The echo server and the key-value server also have separate tests.
"""

from __future__ import annotations

import ast
import contextlib
import re
import shutil
import signal
import socket
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pages
import programs
import pytest
import trustme
from certificates import AUTHORITY, certificate, new_client_context
from programs import EXAMPLES, read_all

#: The servers and their arguments.
SERVERS = {
    "chat.py": [],
    "echo_server.py": ["--bind", "127.0.0.1:0"],
    "http_server.py": [],
    "imperative.py": [],
    "key_value_server.py": [],
    "monkey_patched.py": ["http://127.0.0.1"],
    "proxy.py": ["127.0.0.1:9"],
    "resp_server.py": [],
    "starttls_server.py": ["server.pem"],
    "threaded.py": [],
    "tls_echo.py": ["server.pem"],
    "websocket_chat.py": [],
    "word_count.py": ["server"],
}


@pytest.fixture(autouse=True)
def in_its_own_directory(tmp_path, monkeypatch):
    """Run each test in a directory with a certificate, for the servers that need one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    (tmp_path / "server.pem").write_bytes(certificate("localhost").private_key_and_cert_chain_pem.bytes())
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.cert_pem.bytes())


def running(name, *arguments):
    return programs.running(name, *(arguments or SERVERS[name]), *([] if name == "echo_server.py" else ["--port", 0]))


def lines_of(sock):
    return sock.makefile("r", newline="\n")


def say(sock, text):
    sock.sendall(text.encode())


# Common behavior.


def test_every_example_is_tested_here():
    programs_there = {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("test_")}
    assert programs_there == {*SERVERS, "echo_client.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_prints_its_address(name):
    with running(name) as server:
        assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+\n", server.first_line)


# These servers do log at the end: the echo server, which lets clients finish; TLS, where this test cuts a handshake
# short; and the proxy, which cannot reach its upstream.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS.keys() - {"echo_server.py", "proxy.py", "tls_echo.py"}))
def test_ctrl_c_ends_a_server_and_its_clients_without_output(name):
    with running(name) as server:
        with server.connect() as client:
            server.stop(signal.SIGINT)
            with contextlib.suppress(ConnectionResetError):  # the server may not have accepted it
                read_all(client)
        assert server.end() == (0, "", "")


def test_the_table_lists_every_example():
    readme = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", readme, re.MULTILINE)) == {
        path.name for path in EXAMPLES.glob("*.py")
    }


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("nc") and shutil.which("openssl")), reason="nc or openssl is not installed")
def test_each_documented_command_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_ngi_gevent")  # this simulates an installed plugin
    (tmp_path / "examples").symlink_to(EXAMPLES)
    with pages.Reader(tmp_path) as reader:
        reader.follow(EXAMPLES / "README.md")
    ignored = (EXAMPLES.parent / ".gitignore").read_text().split()
    made = {f"/{path.name}" for path in tmp_path.iterdir()} - {"/examples", "/server.pem", "/authority.pem"}
    assert made  # git must ignore these files in a checkout
    assert [name for name in made if not any(fnmatch(name, pattern) for pattern in ignored)] == []


PORT = re.compile(r"\b80\d\d\b")


def typed(commands):
    """Return *commands* in a comparable form: each on one line, with ports numbered in the order of their first use."""
    ports = {}
    lines = [re.sub(r"\\\n\s*|\s{2,}\(.*", " ", command).strip() for command in commands]
    return [PORT.sub(lambda match: f"port {ports.setdefault(match[0], len(ports))}", line) for line in lines]


def commands_of(path):
    """Return the commands in an example's texts: all indented lines, except literal blocks."""
    constants = [node.value for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Expr, ast.Assign))]
    texts = [constant.value for constant in constants if isinstance(getattr(constant, "value", None), str)]
    text = re.sub(r"::\n(\n|    .*\n)+", "", "\n".join(texts))
    return re.findall(r"^    (\S.*(?:\n {8}.*)*)", text, re.MULTILINE)


def sections():
    """Yield the commands of each section of the README for the default port.  The commands in its prose come last."""
    readme = re.sub(r" --(?:port \d+|bind \S+:\d+)", "", (EXAMPLES / "README.md").read_text())
    for section in readme.split("\n## ")[1:]:
        yield typed([*re.findall(r"^\$ ((?:.*\\\n)*.*)", section, re.MULTILINE), *re.findall(r"`(nc [^`]+)`", section)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_examples_commands_are_those_in_the_readme(path):
    """The test above runs the commands of the README."""
    commands = typed(commands_of(path))
    assert commands or path.name.startswith("test_")
    assert any(set(commands) <= set(section) for section in sections()), commands


# Single examples.


def test_the_echo_client_prints_the_answer():
    with running("echo_server.py") as server:
        client = programs.run("echo_client.py", "--port", server.port, "hello", "out there")
    assert (client.returncode, client.stdout, client.stderr) == (0, "HELLO OUT THERE\n", "")


@pytest.mark.slow
def test_the_echo_client_gets_a_long_answer_that_arrives_in_pieces():
    with running("echo_server.py") as server:
        client = programs.run("echo_client.py", "--port", server.port, "x" * 100_000)
    assert client.stdout == "X" * 100_000 + "\n"


@pytest.mark.slow
def test_the_echo_client_reports_why_it_cannot_connect():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    client = programs.run("echo_client.py", "--port", port, "hello")
    assert client.returncode == 1
    assert re.fullmatch(r"[^\n]*echo_client\.py: [^\n]*refused[^\n]*\n", client.stderr)


@pytest.mark.slow
def test_the_echo_client_reports_an_incomplete_answer():
    def answer_half():
        with bound.accept()[0] as connection:
            connection.recv(100)
            connection.sendall(b"HEL")

    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=answer_half)
        thread.start()
        client = programs.run("echo_client.py", "--port", bound.getsockname()[1], "hello")
        thread.join()
    assert client.returncode == 1
    assert client.stderr.endswith("echo_client.py: the connection ended (end of input) after b'HEL'\n")


def test_the_echo_client_uses_tls():
    with running("tls_echo.py") as server:
        client = programs.run("echo_client.py", "--port", server.port, "--certificate", "authority.pem", "hello")
        assert (client.returncode, client.stdout, client.stderr) == (0, "HELLO\n", "")
        with new_client_context().wrap_socket(server.connect(), server_hostname="localhost") as other:
            other.sendall(b"hello")
            assert other.recv(100) == b"HELLO"


@pytest.mark.slow
def test_a_client_without_tls_gets_a_hint():
    with running("tls_echo.py") as server:
        client = programs.run("echo_client.py", "--port", server.port, "hello")
    assert client.returncode == 1
    assert client.stderr.endswith(" after b''; a server that uses TLS needs --certificate\n")


@pytest.mark.slow
def test_a_client_that_does_not_trust_the_certificate_reports_it():
    trustme.CA().cert_pem.write_to_path("other.pem")
    with running("tls_echo.py") as server:
        client = programs.run("echo_client.py", "--port", server.port, "--certificate", "other.pem", "hello")
        assert client.returncode == 1
        assert re.fullmatch(r"[^\n]*echo_client\.py: [^\n]*certificate verify failed[^\n]*\n", client.stderr)
        server.stop(signal.SIGINT)
        code, _, log = server.end()
    assert code == 0
    assert re.search(r" INFO ngi_gevent.connection: .*handshake failed.*unknown ca", log, re.IGNORECASE)


def test_words_are_counted(tmp_path):
    (tmp_path / "short").write_text("hello out there\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "long").write_text("and so on, " * 100_000)
    with running("word_count.py") as server:
        client = programs.run("word_count.py", "--port", server.port, "client", "short", "empty", "long")
    assert client.stdout == "1 3 16 short\n0 0 0 empty\n0 300000 1100000 long\n"
    assert (client.returncode, client.stderr) == (0, "")


@pytest.mark.slow
def test_a_document_that_does_not_exist_is_named():
    with running("word_count.py") as server:
        client = programs.run("word_count.py", "--port", server.port, "client", "missing")
    assert client.returncode == 1
    assert re.fullmatch(r"[^\n]*word_count\.py: [^\n]*'missing'\n", client.stderr)


def test_each_guest_in_the_room_receives_each_line():
    with running("chat.py") as server, server.connect() as one, lines_of(one) as heard_by_one:
        name = f"guest {one.getsockname()[1]}"
        assert heard_by_one.readline() == f"{name} is here\n"
        with server.connect() as other, lines_of(other) as heard_by_other:
            other_name = f"guest {other.getsockname()[1]}"
            assert heard_by_one.readline() == heard_by_other.readline() == f"{other_name} is here\n"
            say(one, "hel")
            say(one, "lo\n\x1b[2J\n")
            for heard in heard_by_one, heard_by_other:
                assert heard.readline() == f"{name}: hello\n"
                assert heard.readline() == f"{name}: [2J\n"
        assert heard_by_one.readline() == f"{other_name} is gone: end of input\n"


@pytest.mark.slow
def test_a_guest_that_does_not_read_is_disconnected_and_the_others_continue():
    with running("chat.py") as server, server.connect() as talker, lines_of(talker) as heard:
        name = f"guest {talker.getsockname()[1]}"
        with server.connect() as slow, server.connect() as friend, lines_of(friend) as heard_by_friend:
            slow_name, friend_name = (f"guest {sock.getsockname()[1]}" for sock in (slow, friend))
            for lines in heard, heard_by_friend:
                while lines.readline() != f"{friend_name} is here\n":
                    pass
            text = "x" * 900
            ended = False
            for _ in range(20_000):  # the kernel buffers some megabytes before the server must buffer any
                say(talker, f"{text}\n")
                line = heard.readline()
                if line.startswith(f"{slow_name} is gone: "):
                    ended = True
                    assert "output_limit" in line
                    assert heard.readline() == f"{name}: {text}\n"
                assert ended or line == f"{name}: {text}\n"
                while (line := heard_by_friend.readline()) != f"{name}: {text}\n":
                    assert line.startswith(slow_name)
                if ended:
                    break
            assert ended
            with pytest.raises(ConnectionResetError):
                read_all(slow)
            say(friend, "still here\n")
            assert heard.readline() == f"{friend_name}: still here\n"


class _Page(BaseHTTPRequestHandler):
    """A web server whose page takes long."""

    asked = threading.Event()
    go_on = threading.Event()

    def do_GET(self):
        if self.path == "/slow":
            self.asked.set()
            self.go_on.wait(50)
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *arguments):
        """Log nothing."""


def test_a_client_that_waits_for_a_slow_page_does_not_delay_others():
    web = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    serving = threading.Thread(target=web.serve_forever, args=[0.01])
    serving.start()
    try:
        with (
            running("monkey_patched.py", f"http://127.0.0.1:{web.server_port}") as server,
            server.connect() as patient,
            server.connect() as other,
            lines_of(patient) as patient_lines,
            lines_of(other) as other_lines,
        ):
            say(patient, "slow\n")
            assert _Page.asked.wait(30)
            say(other, "quick\nmissing\n../@a b?:1\n")
            assert other_lines.readline() == "200, 6 bytes\n"
            assert "404" in other_lines.readline()
            assert other_lines.readline() == f"200, {len('/../%40a%20b%3F%3A1')} bytes\n"
            _Page.go_on.set()
            assert patient_lines.readline() == "200, 5 bytes\n"
    finally:
        _Page.go_on.set()
        web.shutdown()
        serving.join()
        web.server_close()


@pytest.mark.slow
def test_a_gateway_reports_that_it_cannot_reach_the_web_server():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with running("monkey_patched.py", f"http://127.0.0.1:{port}") as server, server.connect() as client:
        client.sendall(b"page\n")
        client.shutdown(socket.SHUT_WR)
        assert b"refused" in read_all(client)


def test_the_work_is_done_in_plain_threads():
    with running("threaded.py") as server, server.connect() as one, server.connect() as other:
        with lines_of(one) as answers:
            say(one, "1001\n1\n0\n-7\n999999999989\n")
            assert {answers.readline() for _ in range(5)} == {
                "1001 = 7 * 11 * 13\n",
                "1 = 1\n",
                "0 = 0\n",
                "-7 = -7\n",
                "999999999989 = 999999999989\n",
            }
        with lines_of(other) as answers:
            say(other, "many\n")
            assert answers.readline() == "not a number\n"


def test_threads_answer_in_order_even_if_the_client_has_finished_sending():
    with running("threaded.py") as server, server.connect() as client, lines_of(client) as answers:
        say(client, "1001\n7\nmany\n" * 300)
        client.shutdown(socket.SHUT_WR)
        assert answers.readlines() == ["1001 = 7 * 11 * 13\n", "7 = 7\n", "not a number\n"] * 300


def test_a_generator_holds_a_conversation():
    with running("imperative.py") as server, server.connect() as client:
        assert client.recv(100) == b"What is your name? "
        client.sendall(b"Ann\n")
        assert client.recv(100) == b"How old are you? "
        client.sendall(b"old\n")
        received = b""
        while not received.endswith(b"How old are you? "):
            received += client.recv(100)
        assert received == b"A number, please. How old are you? "
        client.sendall(b"30\n")
        assert read_all(client) == b"Ann, in ten years you will be 40.\n"


@pytest.mark.slow
def test_a_conversation_ends_with_its_client():
    with running("imperative.py") as server:
        for said in b"", b"Ann\n", b"Ann\nold\n":
            with server.connect() as client:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                read_all(client)
        server.stop(signal.SIGINT)
        assert server.end() == (0, "", "")


def test_values_are_stored():
    with running("key_value_server.py") as server:
        with server.connect() as client:
            client.sendall(b"set colour 4\nblue\nquit\n")
            assert read_all(client) == b"ok\n"
        with server.connect() as client:
            client.sendall(b"get colour\nquit\n")
            assert read_all(client) == b"value 4\nblue\n"
