"""A forked child that has its parent's descriptors.  It does not hide the end of a connection, or end a connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ngi_gevent.core.threads import make_lock

PROGRAM = """
import json, logging, os, signal, socket, sys

from gevent import socket as gevent_socket

import ngi_gevent

children = []
logging.disable()


class Server:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
        if data == b"raise":
            raise ValueError
        connection.write(b"answer")
        if data != b"finish":
            getattr(connection, data.decode())()


def ask(data):
    sock = gevent_socket.create_connection(listener.address)
    sock.settimeout(10)
    sock.sendall(data)
    if data == b"finish":
        sock.shutdown(socket.SHUT_WR)
    answer = b""
    try:
        while more := sock.recv(100):
            answer += more
        return answer.decode()
    except OSError as error:
        return f"{answer.decode()} {type(error).__name__}"


listener = ngi_gevent.listener(None, Server)
try:
    print(json.dumps({kind: ask(kind.encode()) for kind in sys.argv[1:]}))
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


IN_CHILD = """
import json, os, sys
from functools import partial

from certificates import client_context, server_context

import ngi_gevent
from ngi_gevent import blocking


class Server:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        if data == b"still there?":
            connection.write(b"yes")
            return
        connection.write(b"from ")
        pid = os.fork()
        if not pid:
            connection.control.close() if data == b"stop" else getattr(connection, data.decode())()
            os._exit(0)
        os.waitpid(pid, 0)
        connection.write(b"the parent")


def ask(data, connect, address):
    output, input = blocking.open(address, connect, timeout=10)
    output.write(data)
    answer = input.read(15, timeout=10)
    output.write(b"still there?")
    answer += b", " + input.read(3, timeout=10)
    output.close()
    return answer.decode()


plain = ngi_gevent.listener(None, Server)
tls = ngi_gevent.listener(None, Server, ssl_context=server_context())
connect_tls = partial(ngi_gevent.connect, ssl_context=client_context(), server_hostname="localhost")
print(json.dumps([
    (ask(kind.encode(), ngi_gevent.connect, plain.address), ask(kind.encode(), connect_tls, tls.address))
    for kind in sys.argv[1:]
]))
"""


#: A server with clients of all kinds.  Each of them needs it at the moment of the fork, after which the child waits
#: through gevent.
SERVING = """
import sys

if sys.argv[1] == "monkey":
    from gevent import monkey

    monkey.patch_all()

import gc, json, logging, os, signal, socket, tempfile
from functools import partial

import gevent.os
from certificates import client_context, server_context
from gevent import socket as gevent_socket
from gevent.monkey import get_original

import ngi_gevent
from ngi_gevent import blocking, generator, testing
from ngi_gevent.core import logs

happened, served = [], []


class Log(logging.Handler):
    def emit(self, record):
        happened.append(record.getMessage())


class Server:
    def __init__(self, connection):
        served.append(connection)
        connection.set_handler(self)

    def handle_input(self, connection, data):
        happened.append(data.decode())
        if data == b"stream":
            connection.writelines(stream())
        elif data == b"wait":
            gevent.sleep(0.05)
        connection.write(data)

    def handle_close(self, connection, reason):
        happened.append(f"handle_close: {reason}")


def stream():
    try:
        while True:
            yield b"."
            gevent.sleep(0.05)
    finally:
        happened.append("an iterable was closed")


@generator.handler
def generated(connection):
    served.append(connection)
    try:
        while True:
            connection.write((yield))
    finally:
        happened.append("a generator was closed")


@generator.handler
def failing(connection):
    try:
        yield
        connection.writelines(1 // 0 for _ in range(1))
        gevent.sleep(0.05)
        yield
    finally:
        happened.append("a generator that waited was closed")


class Client(testing.Recorder):
    def connected(self, connection):
        happened.append("connected")
        super().connected(connection)

    def failed_connect(self, reason):
        happened.append(f"failed_connect: {reason}")


def client(listener, **options):
    return blocking.open(listener.address, partial(ngi_gevent.connect, **options), timeout=10)


def talk(pair, data):
    pair[0].write(data)
    return pair[1].read(len(data), timeout=10).decode()


logging.getLogger("ngi_gevent").setLevel(logging.DEBUG)
logging.getLogger("ngi_gevent").propagate = False
logging.getLogger("ngi_gevent").addHandler(logging.NullHandler())
with ngi_gevent.Threaded() as ended:  # whose hub is destroyed
    ended.listener(None, print)
folder = tempfile.TemporaryDirectory()
plain = ngi_gevent.listener(None, Server)
idle = ngi_gevent.listener(None, Server, idle_timeout=0.05)
fails = ngi_gevent.listener(None, failing)
unix = ngi_gevent.listener(folder.name + "/unix", generated)
tls = ngi_gevent.listener(None, Server, ssl_context=server_context())
hasty = ngi_gevent.listener(None, Server, ssl_context=server_context(), handshake_timeout=0.05)
datagrams = ngi_gevent.udp_listener(None, lambda address, data: happened.append("a datagram"))
client_tls = partial(client, ssl_context=client_context(), server_hostname="localhost")
pairs = [client(plain), client(unix), client_tls(tls)]
for pair in pairs:
    talk(pair, b"before")
others = [client(plain), client_tls(tls), client(idle), client(fails)]
others[1][0].write(b"stream")
others[1][1].read(1, timeout=10)
others[0][0].write(b"wait")
others[3][0].write(b"wait")
silent = gevent_socket.create_connection(hasty.address)
full = socket.socket(socket.AF_UNIX)
full.bind(folder.name + "/full")
full.listen(0)
filler = socket.socket(socket.AF_UNIX)
filler.connect(folder.name + "/full")
ngi_gevent.connect(folder.name + "/full", Client())
gevent.sleep(0.01)  # until all of these have begun to wait
gevent.get_hub().loop.run_callback(logs.listeners.warning, "logged soon")
gevent.sleep(0)
connection = served[0]
connection.write(b"in ")
queued = socket.create_connection(plain.address)
queued.sendall(b"hello")
ngi_gevent.udp(datagrams.address, b"x")
ngi_gevent.connect(plain.address, Client())
gevent.get_hub().threadpool.spawn(plain.connect, Client())
while not plain._mailbox.calls:
    get_original("time", "sleep")(0.001)
del happened[:]

result, answer = os.pipe()
pid = {"gevent": gevent.os.fork}.get(sys.argv[1], os.fork)()
if not pid:
    signal.alarm(20)
    logging.getLogger("ngi_gevent").addHandler(Log())
    full.setblocking(False)
    full.accept()[0].close()  # to make room for a connection
    gevent.sleep(0.2)
    gc.collect()
    try:
        full.accept()
    except BlockingIOError:
        pass
    else:
        happened.append("a connection")
    paths = ["/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []
    links = [os.readlink(path) for path in paths if os.path.islink(path)]
    if sum(link.startswith("socket:") for link in links) > 4:  # those that ngi_gevent does not know
        happened.append(f"sockets: {links}")
    errors = []
    for call in (
        *(partial(one.write, b"x") for one in served),
        *(partial(one, timeout=10) for pair in pairs for one in (pair[1].read, pair[0].flush)),
        partial(served[0].drain, timeout=10),
        served[0].while_open().__enter__,
        partial(plain.connect, Client()),
        partial(datagrams.send, datagrams.address, b"x"),
        *(one.close_wait for one in (plain, idle, unix, tls, hasty)),
        datagrams.close,
        *(one.close for one in served),
        *(one.abort for one in served),
        served[0].write_eof,
        served[0].pause_reading,
        served[0].resume_reading,
        ngi_gevent.wait,
    ):
        try:
            errors.append(call())
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    gevent.sleep(0.05)
    seen = list(happened)
    fresh = client(ngi_gevent.listener(None, Server))
    ngi_gevent.udp(ngi_gevent.udp_listener(None, lambda address, data: fresh[0].write(data)).address, b"fresh")
    os.write(answer, json.dumps([seen, errors, fresh[1].read(5, timeout=10).decode()]).encode() + b"\\n")
    os._exit(0)
text = open(result).readline()
connection.write(b"time")
print(json.dumps([
    *json.loads(text),
    pairs[0][1].read(7, timeout=10).decode(),
    [talk(pair, b"after") for pair in pairs],
    talk(client(unix), b"new"),
    gevent_socket.socket(fileno=queued.detach()).recv(5).decode(),
    len(served),
    happened,
]))
os._exit(0)
"""

THREADED = """
import json, os, signal, socket, sys
from contextlib import suppress

import ngi_gevent
from ngi_gevent import blocking
from ngi_gevent.sockets import mailbox, threaded

# A wait for a thread that does not exist would be longer than this test.
threaded.EXIT_TIMEOUT = mailbox.CHECK_AFTER = 1000


def serve(connection):
    connection.write(b"hello")
    connection.close()


class Client:
    connected = failed_connect = print  # never called


def ask(listener):
    with socket.create_connection(listener.address, timeout=20) as sock:
        return sock.recv(10).decode()


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


started, unused = ngi_gevent.Threaded(), ngi_gevent.Threaded()
ready, answer = os.pipe()
with started:
    listener = started.listener(None, serve)
    connection = blocking.connect(listener.address, started.connect)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        errors = [raised(started.listener, None, serve), raised(started.wait), raised(listener.connect, Client())]
        errors += [raised(connection.write, b"x"), raised(listener.close), raised(connection.close)]
        started.close()
        started.wait()
        os.write(answer, json.dumps([*errors, ask(unused.listener(None, serve))]).encode())
if not pid:
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.close(answer)
print(json.dumps([status, json.loads(os.read(ready, 10000) or "null")]))
"""

#: A server that forks children, which end by ``sys.exit``.  One of its clients checks that it continues.
EXITING = """
import json, os, sys, tempfile

import gevent

import ngi_gevent
from ngi_gevent import blocking

path = tempfile.mkdtemp() + "/unix"
statuses = []
parent = os.getpid()


class Server:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        if data == b"fork":
            fork()
        elif os.getpid() != parent:
            print("called in the child", file=sys.stderr)
        else:
            connection.write(b"yes")


def fork():
    pid = os.fork()
    if not pid:
        sys.exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


with (ngi_gevent.Threaded if sys.argv[1] == "thread" else ngi_gevent.Implementation)() as ngi:
    ngi.listener(path, Server)
    output, input = blocking.open(path, ngi.connect, timeout=10)
    if sys.argv[1] == "main":
        fork()
    else:
        others = [blocking.open(path, ngi.connect, timeout=10) for _ in range(4)]
        for other, _ in [*others[:2], (output, None), *others[2:]]:
            other.write(b"fork" if other is output else b"at the same time")
        while not statuses:
            gevent.sleep(0.001)
    output.write(b"still there?")
    print(json.dumps([*statuses, input.read(3, timeout=10).decode(), os.path.exists(path)]))
"""

SHARING = """
import ctypes, json, os, signal, socket

from gevent import socket as gevent_socket

import ngi_gevent


def serve(connection):
    connection.write(b"accepted")
    connection.close()


def ask(address):
    try:
        with gevent_socket.create_connection(address, timeout=10) as sock:
            return sock.recv(10).decode()
    except OSError as error:
        return type(error).__name__


own = ngi_gevent.listener(None, serve)
pid = ctypes.CDLL(None).fork()  # Python does not notice this, so the child closes nothing
if not pid:
    signal.alarm(20)
    signal.pause()
own.close()
refused = ask(own.address)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)

shared = socket.create_server(("127.0.0.1", 0))
worker = os.fork()
if not worker:
    ngi_gevent.listener(shared, serve).close()
    os._exit(0)
os.waitpid(worker, 0)
print(json.dumps([refused, ask(ngi_gevent.listener(shared, serve).address)]))
"""

MULTIPROCESSING = """
import json, multiprocessing, sys

import ngi_gevent
from ngi_gevent import blocking


class Server:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        if data == b"start":
            context = multiprocessing.get_context(sys.argv[1])
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=compute, args=(sender,))
            process.start()
            process.join()
            data = receiver.recv_bytes()
        connection.write(data)


def talk(pair, data, size):
    output, input = pair
    output.write(data)
    return input.read(size, timeout=20).decode()


def compute(sender):
    with ngi_gevent.Implementation() as ngi:
        pair = blocking.open(ngi.listener(None, Server).address, ngi.connect, timeout=20)
        answer = talk(pair, b"fresh", 5)
    sender.send_bytes(f"from a process: {answer}".encode())


if __name__ == "__main__":
    pair = blocking.open(ngi_gevent.listener(None, Server).address, timeout=20)
    print(json.dumps([talk(pair, b"start", 21), talk(pair, b"and again", 9)]))
"""


def run(program, *arguments):
    completed = subprocess.run(
        [sys.executable, "-W", "ignore", *([program] if isinstance(program, Path) else ["-c", program]), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    return json.loads(completed.stdout)


def test_a_child_does_not_hide_the_end_of_a_connection():
    """The child continues to run, with a copy of the descriptor."""
    ended = run(PROGRAM, "close", "abort", "raise", "finish")
    assert ended == {"close": "answer", "abort": "", "raise": "", "finish": "answer"}


def test_a_childs_copy_does_not_affect_the_connection():
    """The child sends no ``shutdown``, no reset and no end of TLS.  The parent's connection continues."""
    assert run(IN_CHILD, "close", "abort", "stop") == [["from the parent, yes"] * 2] * 3


def test_a_child_of_a_threaded_does_not_wait_for_the_parents_thread():
    """The child's exit does not wait.  Its calls raise, or close objects that are already considered closed.

    A ``Threaded`` that was not used before the fork can be used.
    """
    status, told = run(THREADED)
    assert status == 0
    *errors, answer = told
    assert [error and error.split(":")[0] for error in errors] == [
        *["ImplementationClosed"] * 3,
        *["ConnectionClosed", None, None],
    ]
    assert all("fork" in error for error in errors[:4])
    assert answer == "hello"


@pytest.mark.parametrize("kind", ["os", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gevent", "monkey"))])
def test_a_child_that_waits_through_gevent_does_not_serve_its_parents_peers(kind):
    """The child affects neither clients nor servers, whatever they were doing.  Nothing changes in the parent."""
    seen, results, fresh, *in_parent, served, seen_in_parent = run(SERVING, kind)
    assert seen == []
    errors, others = results[:16], results[16:]
    kinds = ["ConnectionClosed"] * 14 + ["ImplementationClosed", "ListenerClosed"]
    assert [error.split(":")[0] for error in errors] == kinds
    assert all("fork" in errors[place] for place in (0, 6, 12, 14))
    assert others == [0] * 5 + [None] * (len(others) - 5)
    assert fresh == "fresh"
    assert in_parent == ["in time", ["after"] * 3, "new", "hello"]
    assert served == 10
    assert "an iterable was closed" not in seen_in_parent
    assert "a generator was closed" not in seen_in_parent


@pytest.mark.parametrize("where", ["main", "handler", "thread"])
def test_a_child_that_exits_leaves_the_implementation_to_its_parent(where):
    """The child leaves a ``with`` statement by ``sys.exit``, in the main program or in a handler.

    A child that was forked in the thread of a ``Threaded`` has no main program to return to.
    """
    assert run(EXITING, where) == [0, "yes", True]


def test_the_process_that_bound_a_listening_socket_shuts_it_down():
    """A child with the descriptor does not keep the socket listening.  Workers that share a socket do not stop each
    other.
    """
    assert run(SHARING) == ["ConnectionRefusedError", "accepted"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_works_in_a_running_server(method, tmp_path):
    """A handler starts a process, which serves and connects.  Its result is the answer."""
    program = tmp_path / "program.py"
    program.write_text(MULTIPROCESSING)
    assert run(program, method) == ["from a process: fresh", "and again"]


def test_a_lock_of_the_forking_thread_is_still_held_in_the_child():
    """A signal handler can fork in the middle of a ``with`` statement, which continues in the child."""
    held = make_lock()
    with held:
        pid = os.fork()
        if not pid:
            os._exit(0 if held._is_owned() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


BUSY = """
import json, os, time

import gevent

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.sockets.dispatcher import Dispatcher

listener = ngi_gevent.listener(None, testing.Recorder)
Dispatcher.current().time.end()  # as after a turn that was too short for all connections
pid = os.fork()
if not pid:
    begun = time.process_time()
    gevent.sleep(0.2)
    os._exit(time.process_time() - begun > 0.05)
print(json.dumps(os.waitpid(pid, 0)[1]))
"""


def test_a_child_of_a_busy_process_waits_without_using_the_processor():
    assert run(BUSY) == 0
