"""Programs in separate processes: patched before the import of the package, after it, and not at all."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import textwrap

import pytest
from certificates import AUTHORITY, certificate

PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORT = "import ngi_gevent, ngi_gevent.blocking, ngi_gevent.generator\n"
HEADS = {"patched before": PATCH + IMPORT, "patched after": IMPORT + PATCH, "unpatched": IMPORT}
PATCHED = [name for name in HEADS if name != "unpatched"]


def run(head: str, program: str, before: str = "") -> str:
    """Run *before*, the code that *head* names, and *program* in a process.  Return the output."""
    code = before + HEADS[head] + textwrap.dedent(program)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
    return answer.stdout


COMMON = """
import threading, time

class Upper:
    def __init__(self, connection): connection.set_handler(self)
    def handle_input(self, connection, data): connection.write(data.upper())

@ngi_gevent.generator.handler
def ask(connection):
    connection.write(b"hello")
    answer = yield
    print(answer.decode(), flush=True)
"""


#: The client of the programs that wait.
CLIENT = """
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
client.sendall(b"hello")
print(client.recv(100).decode(), flush=True)
"""

#: A program that waits for an event of the threading module, which a handler sets.
WAITING = f"""
import subprocess, sys
stop = threading.Event()
class Stop(Upper):
    def handle_close(self, connection, reason): stop.set()
listener = {{implementation}}.listener(("127.0.0.1", 0), Stop)
client = subprocess.Popen([sys.executable, "-S", "-c", {CLIENT!r}, str(listener.address[1])])
assert stop.wait(20)
client.wait()
"""

#: Programs that leave nothing behind. All of them run in one process, because a process takes long to start.
PROGRAMS = {
    "serving": """
    listener = ngi_gevent.listener(("localhost", 0), Upper)
    ngi_gevent.blocking.request(ngi_gevent.connect, ("localhost", listener.address[1]), ask, timeout=20)
    listener.close()
    ngi_gevent.wait(20)
    """,
    "threaded": """
    from ngi_gevent.core.threads import Flag, get_ident
    class Who(Upper):
        def handle_input(self, connection, data): connection.write(b"%d" % get_ident())
    with ngi_gevent.Threaded() as implementation:
        listener = implementation.listener(("127.0.0.1", 0), Who)
        connection = ngi_gevent.blocking.connect(listener.address, implementation.connect, 20)
        answer = []
        done = Flag()
        class Answer:
            def handle_input(self, connection, data): answer.append(int(data)); done.set()
        connection.set_handler(Answer())
        connection.write(b"who?")
        assert done.wait(20)
        print(answer[0] != get_ident())
    """,
    "wsgi": """
    from gevent import pywsgi, spawn
    from gevent.socket import create_connection
    listener = ngi_gevent.listener(None, Upper)
    def application(environment, start_response):
        answers = []
        @ngi_gevent.generator.handler
        def ask(connection):
            connection.write(environment["PATH_INFO"].encode())
            answers.append((yield))
        ngi_gevent.blocking.request(ngi_gevent.connect, listener.address, ask, timeout=20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return answers
    server = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    def get(path):
        sock = create_connection(("127.0.0.1", server.server_port))
        sock.sendall(f"GET /{path} HTTP/1.0\\r\\n\\r\\n".encode())
        answer = b""
        while piece := sock.recv(1000): answer += piece
        sock.close()
        return answer.rsplit(b"\\r\\n", 1)[1]
    print(*sorted(greenlet.get().decode() for greenlet in [spawn(get, f"path{n}") for n in range(3)]))
    server.stop()
    listener.close()
    ngi_gevent.wait(20)
    """,
    "waiting": f"""
    with ngi_gevent.Threaded() as implementation:
{textwrap.indent(WAITING.format(implementation="implementation"), "    " * 2)}
    """,
    "waiting, patched": f"""
    from gevent import monkey
    if monkey.is_module_patched("threading"):
        with ngi_gevent.Implementation() as implementation:
{textwrap.indent(WAITING.format(implementation="implementation"), "    " * 3)}
    """,
    "in memory": """
    import ngi_gevent.testing
    listener = ngi_gevent.testing.listener(None, Upper)
    listener.connect().write(b"hello")
    """,
    # This program is the last one, since the process ends with it. It must end gracefully, without an error or output
    # on standard error.
    "ending": """
    implementation = ngi_gevent.Threaded()
    listener = implementation.listener(("127.0.0.1", 0), Upper)
    connection = ngi_gevent.blocking.connect(listener.address, implementation.connect, 20)
    connection.write(b"x")
    """,
}


@pytest.fixture(scope="module", params=HEADS)
def head(request):
    return request.param


@pytest.fixture(scope="module")
def printed(head):
    """The output of each program."""
    program = COMMON
    for name, code in PROGRAMS.items():
        program += f'print("# {name}", flush=True)\n{textwrap.dedent(code)}'
    # The test's imports come on the same side of patching as the package's.
    before = "" if head == "patched before" else "import ngi_gevent.testing\n"
    parts = re.split(r"^# (.+)\n", run(head, program, before), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_a_program_serves_and_asks_on_its_own_hub(printed):
    assert printed["serving"] == "HELLO\n"


def test_a_threaded_implementation_runs_on_a_real_thread(printed):
    assert printed["threaded"] == "True\n"


def test_a_wsgi_application_can_make_requests(printed):
    assert printed["wsgi"] == "/PATH0 /PATH1 /PATH2\n"


def test_a_threaded_server_serves_while_its_program_waits_for_an_event(printed):
    assert printed["waiting"] == "HELLO\n"


def test_a_patched_server_serves_while_its_program_waits_for_an_event(printed, head):
    assert printed["waiting, patched"] == ("HELLO\n" if head in PATCHED else "")


def test_a_server_answers_in_memory(printed):
    assert printed["in memory"] == "-> b'HELLO'\n"


def test_a_program_with_a_threaded_implementation_ends_gracefully(printed):
    assert printed["ending"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("head", PATCHED)
def test_a_patched_handler_that_calls_a_slow_web_server_does_not_delay_others(head):
    program = """
    import http.server, urllib.request
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(1)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"slow answer")
        def log_message(self, *arguments): pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=web.serve_forever, daemon=True).start()

    class Fetch(Upper):
        def handle_input(self, connection, data):
            if data == b"fetch":
                data = urllib.request.urlopen(f"http://127.0.0.1:{web.server_port}/").read()
            connection.write(data.upper())

    listener = ngi_gevent.listener(None, Fetch)

    @ngi_gevent.generator.handler
    def fetch(connection):
        connection.write(b"fetch")
        answer = yield
        print(answer.decode(), flush=True)

    ngi_gevent.connect(listener.address, fetch)
    began = time.monotonic()
    for _ in range(20):
        ngi_gevent.blocking.request(ngi_gevent.connect, listener.address, ask, timeout=20)
    assert time.monotonic() - began < 0.9
    listener.close(lambda listener: None)
    ngi_gevent.wait(20)
    assert time.monotonic() - began >= 1
    """
    assert run(head, COMMON + textwrap.dedent(program)) == "HELLO\n" * 20 + "SLOW ANSWER\n"


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("end", ["implementation.close()", "connection.close(); listener.close()"])
def test_a_program_that_closes_a_threaded_implementation_ends_gracefully(head, end):
    assert run(head, COMMON + textwrap.dedent(PROGRAMS["ending"]) + end) == ""


CONTEXTS = """
import ssl, warnings
{more}
for_server = {kind}(ssl.PROTOCOL_TLS_SERVER)
for_server.load_cert_chain("server.pem")
for_client = {kind}(ssl.PROTOCOL_TLS_CLIENT)
for_client.load_verify_locations("authority.pem")
"""
CONTEXT_KINDS = {
    "made first": CONTEXTS.format(
        kind="ssl.SSLContext", more="warnings.simplefilter('ignore')"
    ),  # gevent warns about this
    "made last": CONTEXTS.format(kind="ssl.SSLContext", more=""),
    "gevent's": CONTEXTS.format(kind="gevent.ssl.SSLContext", more="import gevent.ssl"),
}


@pytest.mark.parametrize(
    ("head", "contexts"),
    [
        pytest.param(head, contexts, marks=() if number % 4 == 0 else pytest.mark.slow)  # each head and each kind once
        for number, (head, contexts) in enumerate(itertools.product(HEADS, CONTEXT_KINDS))
    ],
)
def test_any_context_works_and_a_silent_client_does_not_delay_others(head, contexts, tmp_path, monkeypatch):
    program = """
    import functools, socket
    def answer(implementation):
        listener = implementation.listener(("127.0.0.1", 0), Upper, ssl_context=for_server)
        silent = socket.create_connection(listener.address)
        connect = functools.partial(implementation.connect, ssl_context=for_client, server_hostname="localhost")
        began = time.monotonic()
        ngi_gevent.blocking.request(connect, listener.address, ask, timeout=20)
        assert time.monotonic() - began < 5
        silent.close()
        listener.close()
        implementation.wait(20)
    with ngi_gevent.Implementation() as implementation: answer(implementation)
    with ngi_gevent.Threaded() as implementation: answer(implementation)
    """
    (tmp_path / "server.pem").write_bytes(certificate("localhost").private_key_and_cert_chain_pem.bytes())
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    program = COMMON + textwrap.dedent(program)
    first, last = (CONTEXT_KINDS[contexts], "") if contexts == "made first" else ("", CONTEXT_KINDS[contexts])
    assert run(head, last + program, before=first) == "HELLO\n" * 2


def test_the_package_does_not_import_ssl_by_itself():
    """If it did, gevent would warn programs that patch after the import."""
    modules = "import sys, ngi_gevent.adapters, ngi_gevent.message, ngi_gevent.blocking\nprint('ssl' in sys.modules)"
    assert run("unpatched", modules) == "False\n"


LATE = """
def use():
    try:
        with ngi_gevent.Threaded() as implementation:
            listener = implementation.listener(("127.0.0.1", 0), Upper)
            ngi_gevent.blocking.request(implementation.connect, listener.address, ask, timeout=20)
    except RuntimeError as error:
        print(error)
"""
LATELY = {
    "in another thread": "threading.Thread(target=lambda: (threading.main_thread().join(), use())).start()",
    "at exit": "import atexit; atexit.register(use)",
}


@pytest.mark.parametrize(
    ("head", "lately"),
    [
        # Each head and each moment once.
        pytest.param(head, lately, marks=() if number in (0, 3, 4) else pytest.mark.slow)
        for number, (head, lately) in enumerate(itertools.product(HEADS, LATELY))
    ],
)
def test_a_threaded_implementation_can_begin_after_the_end_of_the_main_thread(head, lately):
    """gevent's thread pool, which resolves names, cannot start then.  Since Python 3.12, perhaps no thread can."""
    answer = run(head, COMMON + LATE + LATELY[lately])
    answers = [
        "HELLO\n",
        *(["can't create new thread at interpreter shutdown\n"] if sys.version_info >= (3, 12) else []),
    ]
    assert answer in answers


@pytest.mark.parametrize("head", PATCHED)
def test_in_a_simulation_patched_functions_wait_on_the_hub_and_the_originals_raise(head):
    program = """
    import select, socket, subprocess, threading, time
    from gevent.monkey import get_original
    from ngi_gevent.core import threads
    from ngi_gevent.testing.simulation.errors import NotSimulated
    from ngi_gevent.testing.simulation.fence import Fence

    def fails(function, *arguments):
        try:
            function(*arguments)
        except NotSimulated:
            return True

    with Fence():
        time.sleep(0.001)
        thread = threading.Thread(target=time.sleep, args=[0])
        thread.start()
        thread.join()
        assert fails(get_original("time", "sleep"), 0)
        assert fails(get_original("select", "select"), [], [], [], 0)
        assert fails(get_original("_thread", "start_new_thread"), int, ())
        assert fails(threads.start_new_thread, int, ())
        assert fails(socket.socket)
        assert fails(subprocess.run, ["true"])
    get_original("time", "sleep")(0)
    print("ok")
    """
    assert run(head, program) == "ok\n"
