"""A forked child that holds the descriptors of its parent: it hides no end, and ends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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


THREADED = """
import json, os, signal, socket, sys
from contextlib import suppress

import ngi_gevent
from ngi_gevent.sockets import mailbox, threaded

# Whoever waits for a thread that does not exist does so for longer than this test.
threaded.EXIT_PATIENCE = mailbox.LOOK_AFTER = 1000


def serve(connection):
    connection.write(b"hello")
    connection.close()


def ask(listener):
    with socket.create_connection(listener.address, timeout=20) as sock:
        return sock.recv(10).decode()


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


started, unused = ngi_gevent.Threaded(), ngi_gevent.Threaded()
ready, told = os.pipe()
with started:
    listener = started.listener(None, serve)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        errors = raised(started.listener, None, serve), raised(started.wait), raised(listener.close)
        started.close()
        started.wait()
        os.write(told, json.dumps([*errors, ask(unused.listener(None, serve))]).encode())
if not pid:
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.close(told)
print(json.dumps([status, json.loads(os.read(ready, 10000) or "null")]))
"""


def run(program, *arguments):
    completed = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def test_a_child_does_not_hide_the_end_of_a_connection():
    """It lives on, and has a copy of the descriptor."""
    ended = run(PROGRAM, "close", "abort", "raise", "finish")
    assert ended == {"close": "answer", "abort": "", "raise": "", "finish": "answer"}


def test_what_a_child_does_with_its_copy_does_not_reach_the_connection():
    """No ``shutdown``, no reset, no end of TLS: the parent's connection goes on."""
    assert run(IN_CHILD, "close", "abort", "stop") == [["from the parent, yes"] * 2] * 3


def test_a_child_of_a_threaded_waits_for_no_thread_that_it_does_not_have():
    """Neither at its end, nor in a call: that raises.  One that was not used before the fork can be used."""
    status, told = run(THREADED)
    assert status == 0
    *errors, answer = told
    assert all(error.startswith("ImplementationClosed: ") for error in errors)
    assert "before a fork" in errors[0]
    assert errors[1] == errors[0]
    assert answer == "hello"
