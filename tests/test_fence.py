"""The fence around a simulation, and the time and random numbers inside it."""

from __future__ import annotations

import _thread
import datetime
import faulthandler
import gc
import logging
import multiprocessing
import os
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import gevent.socket
import gevent.subprocess
import gevent.threadpool
import pytest
from gevent.monkey import get_original

import ngi_gevent
from ngi_gevent.core import threads
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.simulation import NotSimulated, SimulationError
from ngi_gevent.testing.simulation.fence import Fence, is_inside
from ngi_gevent.testing.simulation.program import patched_time

LEAVING = {
    "socket.socket": [
        socket.socket,
        gevent.socket.socket,
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: get_original("socket", "socket")(),
        lambda: Network().make_socket(socket.AF_INET, socket.SOCK_STREAM),
        lambda: Network().make_socket(socket.AF_INET, socket.SOCK_DGRAM),
    ],
    "socket.getaddrinfo": [
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: socket.create_connection(("127.0.0.1", 1)),
        lambda: ngi_gevent.listener(None, print),
        lambda: Network().resolve("127.0.0.1", 80, socket.SOCK_STREAM),
    ],
    "socket.gethostbyname": [lambda: socket.gethostbyname("localhost")],
    "socket.gethostbyaddr": [lambda: socket.gethostbyaddr("127.0.0.1")],
    "socket.getnameinfo": [lambda: socket.getnameinfo(("127.0.0.1", 80), 0)],
    "subprocess.Popen": [lambda: subprocess.run(["true"]), lambda: os.popen("true")],
    "os.fork": [os.fork, lambda: gevent.subprocess.call(["true"]), multiprocessing.get_context("fork").Process().start],
    "os.forkpty": [os.forkpty],
    "os.posix_spawn": [lambda: os.posix_spawn("/bin/true", ["true"], {})],
    "os.system": [lambda: os.system("true")],
    "os.exec": [lambda: os.execv("/bin/true", ["true"])],
    "_posixsubprocess.fork_exec": [multiprocessing.get_context("spawn").Process().start],
    "time.sleep": [lambda: time.sleep(0), lambda: get_original("time", "sleep")(0)],
    "select.select": [lambda: select.select([], [], [], 0)],
    "select.poll": [lambda: select.poll(), lambda: get_original("select", "poll")()],
}
# Since Python 3.13, some start methods of threads have another name.
THREADS = [
    lambda: threading.Thread(target=int).start(),
    lambda: ThreadPoolExecutor().submit(int),
    lambda: threads.start_new_thread(int, ()),
    lambda: get_original("_thread", "start_new_thread")(int, ()),
    lambda: ngi_gevent.Threaded().listener(None, print),
    lambda: gevent.threadpool.ThreadPool(1).spawn(int).get(),
]
CALLS = [(call, leave) for call, some in LEAVING.items() for leave in some]


@pytest.mark.parametrize(("call", "leave"), CALLS, ids=[f"{call}-{n}" for n, (call, _) in enumerate(CALLS)])
def test_a_call_that_leaves_the_simulation_is_an_error_that_names_it(call, leave):
    with Fence(), pytest.raises(NotSimulated, match=rf"^{re.escape(call)} was called in a simulation; \w+"):
        leave()


@pytest.mark.parametrize("start", THREADS)
def test_starting_a_native_thread_is_an_error_that_names_the_call(start):
    with Fence(), pytest.raises(NotSimulated, match=r"(?i)thread(\.start)? was called in .*; use gevent.spawn"):
        start()


def test_an_earlier_socket_is_an_error_at_its_first_use():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for call in (sock.bind, sock.connect, lambda address: sock.sendto(b"x", address)):
            with Fence(), pytest.raises(NotSimulated, match="socket"):
                call(("127.0.0.1", 1))


def test_harmless_calls_are_allowed(tmp_path, caplog):
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))  # pytest-timeout calls this, too
    with Fence():
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        (tmp_path / "file").write_bytes(b"x")
        assert os.path.exists(tmp_path)
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
        context = ssl.create_default_context()
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="127.0.0.1")
        logging.getLogger("test").warning("hello")
        gevent.sleep(0.002)
        gevent.spawn(gc.collect).get()
    signal.signal(signal.SIGALRM, before)
    assert alarms == [1]
    assert "hello" in caplog.text


def test_the_fence_does_not_affect_other_threads():
    done = threading.Event()
    begin = threading.Event()
    results = []

    def work():
        begin.wait(10)
        results.append(is_inside())
        time.sleep(0)
        select.select([], [], [], 0)
        socket.socket().close()
        threading.Thread(target=done.set).start()

    thread = threading.Thread(target=work)
    thread.start()
    with Fence():
        assert is_inside()
        begin.set()
        assert done.wait(10)
    thread.join()
    assert results == [False]


def test_after_the_fence_everything_is_restored():
    before = select.select, select.poll, time.sleep, _thread.start_new_thread
    with pytest.raises(ZeroDivisionError), Fence():
        raise ZeroDivisionError
    assert (select.select, select.poll, time.sleep, _thread.start_new_thread) == before
    assert not is_inside()
    socket.socket().close()
    time.sleep(0)


def test_fences_of_two_threads_do_not_affect_each_other():
    entered, left = threading.Event(), threading.Event()

    def work():
        with Fence():
            entered.set()
            left.wait(10)
            with pytest.raises(NotSimulated):
                select.poll()

    with ThreadPoolExecutor() as pool:
        other = pool.submit(work)
        entered.wait(10)
        with Fence(), pytest.raises(NotSimulated):
            select.poll()
        select.poll()
        left.set()
        other.result(10)
    assert not hasattr(select.poll, "__wrapped__")


def test_time_follows_the_simulation_on_its_thread():
    now = 0.0
    real = time.time()
    with Fence(), patched_time(lambda: now, Random(0)):
        assert time.time() == datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc).timestamp()
        assert time.monotonic() == time.perf_counter() == 0
        now = 3600.000_000_25
        assert time.time() == pytest.approx(1_893_459_600)
        assert time.time_ns() == 1_893_459_600_000_000_250
        assert time.monotonic_ns() == time.perf_counter_ns() == 3_600_000_000_250
        with pytest.raises(SimulationError, match="only one simulation"), patched_time(lambda: now, Random(0)):
            pass
    assert real <= time.time() < real + 60

    with patched_time(lambda: now, Random(0)):
        assert real <= time.time() < real + 60  # another thread is outside the fence
        assert abs(time.time_ns() / 1e9 - time.time()) < 60


def test_random_numbers_follow_the_seed_and_are_restored():
    state = random.getstate()
    drawn = []
    for seed in 1, 1, 2:
        with pytest.raises(ZeroDivisionError), patched_time(lambda: 0.0, Random(seed)):
            drawn.append([random.random(), random.choice("abc"), random.getrandbits(60)])
            raise ZeroDivisionError
    assert drawn[0] == drawn[1] != drawn[2]
    assert random.getstate() == state
