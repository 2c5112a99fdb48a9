"""The application for the tests of gunicorn's workers: a server with a command for each test."""

from __future__ import annotations

import os
import time
from pathlib import Path

import gevent
from gevent import monkey

import ngi_gevent

VERSION = 1
LOADED_BY = os.getpid()
PATCHED = monkey.is_module_patched("socket")
# The process that imports this module has a hub with a thread pool.
gevent.get_hub().threadpool.apply(os.getpid)


class Server:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        word, _, seconds = data.decode().strip().partition(" ")
        if word == "pid":
            answer = os.getpid()
        elif word == "version":
            answer = VERSION
        elif word == "patched":
            answer = PATCHED
        elif word == "loaded":
            answer = LOADED_BY
        elif word == "thread":
            answer = gevent.get_hub().threadpool.apply(os.getpid)
        elif word == "tls":
            answer = connection.ssl_object and connection.ssl_object.version()
        elif word == "peer":
            answer = connection.peer_address
        elif word == "wait":
            connection.write(b"waiting\n")
            gevent.sleep(float(seconds))
            answer = "done"
        elif word == "compute":
            Path("computing").touch()
            end = time.monotonic() + float(seconds)
            while time.monotonic() < end:
                pass
            answer = "done"
        else:
            raise ValueError(word)
        connection.write(f"{answer}\n".encode())

    def handle_close(self, connection, reason):
        with open("closed", "a") as closed:
            print(reason, file=closed)


class Echo:
    """Echoes its input, for the clients of ``load.Load``."""

    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


def make(word):
    """Return a server that answers *word*."""

    def server(connection):
        connection.write(f"{word}\n".encode())
        connection.close()

    return server


def wsgi(environ, start_response):
    """Answer as a WSGI application, which is the wrong kind here."""


def no_server():
    """Stand for a factory that a user named without its parentheses."""


impatient = ngi_gevent.Service(Server, idle_timeout=0.1)
too_long = ngi_gevent.Service(Server, max_connections=5)
backwards = ngi_gevent.Service(Server, idle_timeout=-1)

if Path("mistake").exists():
    {}["DATABASE"]
