"""Native threads, the implementations ``Threaded`` and ``Inline``, and the contexts of handlers."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from queue import Queue

import gevent
import pytest
from stages import PATIENCE, Steps, TCPStage, Witness, in_thread

import ngi_gevent.testing
from ngi_gevent import (
    ConnectionClosed,
    Deadlock,
    ImplementationClosed,
    Inline,
    LimitExceeded,
    Threaded,
    Timeout,
    adapters,
    blocking,
    generator,
)
from ngi_gevent.core.threads import Flag
from ngi_gevent.sockets import hub_registry, mailbox
from ngi_gevent.sockets.threaded import EXIT_TIMEOUT


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


def descriptors():
    """Count the descriptors of each socket, and of the loops.

    Files do not count.  A thread that has been joined may open one while it ends, when glibc frees its memory.
    """
    links = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed
            links[os.readlink(f"/proc/self/fd/{name}")] += 1
    return Counter({link: count for link, count in links.items() if not link.startswith("/")})


@generator.handler(connection_adapter=adapters.Sized)
def word_count(connection):
    while True:
        text = yield
        connection.write(b"%d %d" % (len(text.splitlines()), len(text.split())))


def test_two_hundred_threads_talk_to_a_word_count_server():
    """Each thread checks its own answers.  At the end, no connection, thread or descriptor is left."""

    class Client:
        """A client that sends one text after another.  It runs on the hub's thread, and another thread waits for it."""

        def __init__(self, number):
            self.texts = [f"text {number} of\nthread {turn} ".encode() * (number + turn + 1) for turn in range(5)]
            self.answers = []

        def connected(self, connection):
            self.connection = adapters.Sized(connection)
            self.connection.set_handler(self)
            self.connection.write(self.texts[0])

        def failed_connect(self, reason):
            self.answers.append(reason)

        def handle_input(self, connection, data):
            self.answers.append(data)
            if len(self.answers) == len(self.texts):
                connection.close()
            else:
                connection.write(self.texts[len(self.answers)])

    def talk(number):
        client = Client(number)
        begin.wait()
        reason = blocking.request(implementation.connect, listener.address, client, timeout=PATIENCE)
        expected = [b"%d %d" % (len(text.splitlines()), len(text.split())) for text in client.texts]
        if reason is None and client.answers == expected:
            right.append(number)

    before = descriptors(), set(threading.enumerate())
    implementation = Threaded()
    listener = implementation.listener(None, word_count)
    begin, right = threading.Event(), []
    threads = [threading.Thread(target=talk, args=[number]) for number in range(200)]
    for thread in threads:
        thread.start()
    begin.set()
    for thread in threads:
        thread.join()
    assert sorted(right) == list(range(200))
    assert list(listener.connections()) == []
    (thread,) = set(threading.enumerate()) - before[1]
    implementation.close()
    thread.join(PATIENCE)
    # Leftovers of earlier tests can vanish during this one.
    assert descriptors() <= before[0]
    assert set(threading.enumerate()) <= before[1]


def test_threads_have_their_given_names_or_default_names():
    class Tell(ngi_gevent.testing.Recorder):
        def connected(self, connection):
            connection.write(f"{threading.current_thread().name}, {gevent.get_hub().name}".encode())
            connection.close()

    names = []
    for options in {}, {}, {"name": "gateway"}:
        client = ngi_gevent.testing.Recorder()
        with Threaded(**options) as implementation:
            implementation.listener(None, Tell().connected).connect(client)
            client.wait_closed()
        names += client.data.decode().split(", ")
        implementation.join(PATIENCE)
    assert names[0] == names[1] != names[2] == names[3]
    assert all(re.fullmatch(r"ngi_gevent\.Threaded-\d+", name) for name in names[:4])
    assert names[4:] == ["gateway", "gateway"]
    with pytest.raises(TypeError, match="name must be a str, or None; got True"):
        Threaded(name=True)


def test_a_greenlet_that_raises_system_exit_does_not_end_the_thread_of_a_threaded():
    class Server(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            gevent.spawn(sys.exit).join()
            connection.write(b"still here")

    served, client = Server(), ngi_gevent.testing.Recorder()
    with Threaded() as implementation:
        implementation.listener(None, served.connected).connect(client)
        client.wait_connected().write(b"x")
        client.expect(b"still here")
    implementation.wait(PATIENCE)


def test_a_connection_of_a_destroyed_hub_can_be_closed_in_any_way():
    def serve():
        listener = ngi_gevent.listener(None, connections.append)
        blocking.connect(listener.address, timeout=PATIENCE)
        gevent.sleep(0)
        gevent.get_hub().destroy(destroy_loop=True)

    connections = []
    in_thread(serve)
    (connection,) = connections
    connection.when_closed(lambda: None)
    connection.set_handler(Echo(None))
    connection.close()
    connection.abort()
    assert not connection


def test_writes_of_a_thread_keep_their_order_and_arrive_at_once(tcp):
    client, served = tcp.talk()
    began = time.monotonic()

    def write():
        for number in range(1000):
            served.connection.write(b"%d " % number)
            if number % 100 == 0:
                served.connection.writelines([b"lines "])
        served.connection.close()
        assert not served.connection
        with pytest.raises(ConnectionClosed):
            served.connection.write(b"too late")
        with pytest.raises(ConnectionClosed):
            served.connection.writelines([b"too late"])
        with pytest.raises(TypeError):
            served.connection.write("text")

    in_thread(write)
    tcp.until(lambda: client.closed)
    assert client.data == b"".join(b"%d " % n + (b"lines " if n % 100 == 0 else b"") for n in range(1000))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("write", "cost"),
    [
        (lambda connection: connection.write(bytes(65536)), 65536),
        (lambda connection: connection.writelines([bytes(65536)]), 65536 + 4096),
        (lambda connection: connection.writelines([memoryview(bytearray(65536)).cast("I")]), 65536 + 4096),
    ],
    ids=["write", "a list of bytes", "a list of memoryviews"],
)
def test_output_limit_applies_to_other_threads_while_the_hub_is_busy(write, cost):
    """The handler blocks the hub's thread, so output of other threads cannot be sent until it returns."""
    busy, go_on = threading.Event(), threading.Event()

    class Busy(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            busy.set()
            assert go_on.wait(PATIENCE)

    served, client = Busy(), ngi_gevent.testing.Recorder()
    with Threaded() as implementation:
        try:
            implementation.listener(None, served.connected, output_limit=1_000_000).connect(client)
            client.wait_connected().write(b"x")
            assert busy.wait(PATIENCE)
            writes = 0
            with pytest.raises(ConnectionClosed):
                for _ in range(1000):
                    write(served.connection)
                    writes += 1
        finally:
            go_on.set()
        served.wait_closed(PATIENCE)
    assert writes == 1_000_000 // cost + 2  # one write exceeds the limit, and the next one ends the connection
    assert isinstance(served.closed, LimitExceeded)
    assert "from other threads" in str(served.closed)


def test_a_late_answer_from_another_thread_is_refused(tcp):
    """The connection has closed after the client's input.  The loss of an answer must be reported."""
    peer = tcp.peer(tcp.listen())
    peer.send(b"question")
    peer.finish()
    tcp.until(lambda: tcp.served and tcp.served[0].closed)
    served = tcp.served[0]
    assert (served.data, served.closed) == (b"question", "end of input")
    for write, answer in (served.connection.write, b"answer"), (served.connection.writelines, [b"answer"]):
        with pytest.raises(ConnectionClosed):
            in_thread(write, answer)


def test_a_waiting_hub_is_woken_at_once(tcp):
    """No other event and no timer wakes the hub."""
    client, served = tcp.talk()
    threading.Timer(0.05, served.connection.write, [b"wake up"]).start()
    began = time.monotonic()
    tcp.until(lambda: client.data)
    assert time.monotonic() - began < 0.5


def test_other_threads_can_set_handlers_and_end_connections(tcp):
    client, served = tcp.talk()
    second = Witness(tcp)
    in_thread(served.connection.set_handler, second)
    in_thread(served.connection.when_closed, lambda: second.trace.append("closed"))
    client.connection.write(b"hello")
    tcp.until(lambda: second.data == b"hello")
    with pytest.raises(TypeError):
        in_thread(served.connection.set_handler, None)
    in_thread(served.connection.abort)
    tcp.until(lambda: second.trace[-1] == "closed")
    assert isinstance(client.closed, ConnectionResetError) or not client.closed
    assert in_thread(served.connection.close) is None
    tcp.until(lambda: client.closed)


def test_a_first_handler_set_by_another_thread_receives_an_earlier_end(tcp):
    connections = []
    client = tcp.client(tcp.listen(lambda connection: (connections.append(connection), tcp.happened())))
    tcp.until(lambda: connections)
    tcp.listeners[0].close()
    client.connection.close()
    connections[0].when_closed(tcp.happened)
    tcp.until(lambda: connections[0]._lifecycle.is_gone())
    late = Witness(tcp)
    in_thread(connections[0].set_handler, late)
    tcp.until(lambda: late.closed)
    assert late.trace == [("close", "stopped")]


def test_a_first_handler_on_a_destroyed_hub_gets_no_callback(caplog):
    """No greenlet is left that could call the handler."""

    def end_before_it_has_a_handler():
        with ngi_gevent.Implementation() as implementation:
            listener = implementation.listener(None, lambda connection: connections.append(connection))
            client = blocking.connect(listener.address, implementation.connect, PATIENCE)
            with gevent.Timeout(PATIENCE):
                while not connections:
                    gevent.sleep(0.001)
            listener.close()
            client.close()
            implementation.wait(PATIENCE)
        gevent.get_hub().destroy(destroy_loop=True)

    connections = []
    in_thread(end_before_it_has_a_handler)
    late = ngi_gevent.testing.Recorder()
    connections[0].set_handler(late)
    connections[0].abort()
    assert late.closed is None


def test_other_threads_can_use_listeners(tcp):
    client, served = tcp.talk(Echo)
    listener = tcp.listeners[0]
    assert in_thread(lambda: len(list(listener.connections()))) == 1
    late = Witness(tcp)
    in_thread(listener.connect, late)
    tcp.until(lambda: late.connection)
    address = listener.address
    told = []
    in_thread(listener.close, lambda listener: (told.append(listener), tcp.happened()))
    again = tcp.implementation.listener(address, tcp.server())  # the address is free when close returns
    tcp.listeners.append(again)
    assert in_thread(listener.close_wait, 0) == 2
    tcp.until(lambda: told)
    with pytest.raises(TypeError):
        in_thread(listener.close, "handler")


def test_another_thread_can_close_an_implementation(tcp):
    client, served = tcp.talk()
    in_thread(tcp.implementation.close)
    tcp.until(lambda: client.connection._lifecycle.is_gone() and served.connection._lifecycle.is_gone())
    with pytest.raises(ImplementationClosed):
        tcp.listen()
    tcp.implementation = ngi_gevent.Implementation()


def test_each_thread_has_its_own_hub():
    """In each thread, the implementation serves the listeners and connections that were made there."""

    def serve_and_ask():
        listener = implementation.listener(None, lambda connection: Echo(stage, connection))
        assert blocking.request(implementation.connect, listener.address, ask, timeout=PATIENCE) is None
        listener.close()
        implementation.wait(PATIENCE)
        gevent.get_hub().destroy()

    implementation, stage = ngi_gevent.Implementation(), TCPStage(None)
    in_thread(serve_and_ask)
    in_thread(serve_and_ask)


class LastMoment(ngi_gevent.Implementation):
    """An implementation that makes each thread wait at the beginning of its use, until the test releases it."""

    def __init__(self):
        super().__init__()
        self.arrived = Queue()
        self.over = threading.Event()

    def use(self, gone_on):
        """Use the implementation, as the body of a thread."""
        with contextlib.suppress(ImplementationClosed):
            self.listener(None, lambda connection: None)
        gone_on.set()
        self.wait(PATIENCE)
        assert self.over.wait(PATIENCE)  # until then, the hub must not be destroyed
        gevent.get_hub().destroy()

    def _make_registry(self):
        go_on = threading.Event()
        self.arrived.put(go_on)
        assert go_on.wait(PATIENCE)
        return super()._make_registry()


def test_close_ends_connections_that_other_threads_begin_at_the_same_time():
    """At each step of the close, another thread begins to use the implementation."""

    def next_goes_on(*_):
        if waiting:
            go_on, gone_on = waiting.pop()
            go_on.set()
            assert gone_on.wait(PATIENCE)
        return next_goes_on

    implementation, users, waiting = LastMoment(), [], []
    for _ in range(20):
        gone_on = threading.Event()
        users.append(threading.Thread(target=in_thread, args=[implementation.use, gone_on]))
        users[-1].start()
        waiting.append((implementation.arrived.get(timeout=PATIENCE), gone_on))
    next_goes_on()
    next_goes_on()
    before = sys.gettrace()
    sys.settrace(next_goes_on)
    try:
        implementation.close()
    finally:
        sys.settrace(before)
        implementation.close()
        while waiting:
            next_goes_on()
        implementation.over.set()
    for user in users:
        user.join(PATIENCE)
        assert not user.is_alive()


@generator.handler
def ask(connection):
    connection.write(b"hello")
    assert (yield) == b"HELLO"


def test_output_of_a_thread_comes_before_later_output_of_the_hubs_thread(socket_stage):
    if not socket_stage.has_threads:
        pytest.skip("a simulation has no native threads")

    class Mixed(Witness):
        def handle_input(self, connection, data):
            for number in range(3):
                thread = threading.Thread(target=connection.write, args=[b"thread %d " % number])
                thread.start()
                thread.join()
                if number:
                    connection.write(b"hub %d " % number)
            connection.close()

    client, served = socket_stage.talk(Mixed)
    client.connection.write(b"go")
    socket_stage.until(lambda: client.closed)
    assert client.data == b"thread 0 thread 1 hub 1 thread 2 hub 2 "


@pytest.mark.parametrize("end", ["close", "abort"])
def test_no_callback_begins_after_another_thread_ended_the_connection(tcp, end):
    """When the connection ends, the hub is busy, and input has already arrived."""

    class Busy(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"busy":
                other = tcp.served[1].connection
                tcp.peers[0].socket._sock.send(b"input that is there already")
                thread = threading.Thread(target=getattr(other, end))
                thread.start()
                thread.join()
                assert not other

    peer = tcp.peer(tcp.listen(Busy, linger_timeout=0.05))
    tcp.until(lambda: tcp.served)
    first = tcp.client(tcp.listeners[0])
    tcp.until(lambda: len(tcp.served) == 2)
    tcp.served.sort(key=lambda served: served.connection.peer_address == peer.socket.getsockname())
    first.connection.write(b"busy")
    tcp.until(lambda: tcp.served[1].connection._lifecycle.is_gone())
    assert tcp.served[1].trace == []


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_pending_callback_does_not_begin_after_another_thread_ended_the_connection(tcp, end):
    """Input for all connections arrives in one turn of the loop.  The first handler ends the other connections."""

    class EndOthers(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            others = [served.connection for served in tcp.served if served is not self]
            thread = threading.Thread(target=lambda: [getattr(other, end)() for other in others])
            thread.start()
            thread.join()

    listener = tcp.listen(EndOthers, linger_timeout=0.05)
    peers = [tcp.peer(listener) for _ in range(3)]
    tcp.until(lambda: len(tcp.served) == 3)
    for peer in peers:
        peer.socket._sock.send(b"input")
    tcp.until(lambda: sum(served.connection._lifecycle.is_gone() for served in tcp.served) == 2)
    assert sorted(served.trace for served in tcp.served) == [[], [], [b"input"]]


def test_wait_includes_events_that_only_another_thread_causes():
    class Late(Hello):
        def connected(self, connection):
            timers.append(threading.Timer(0.05, connection.set_handler, [self]))
            timers[0].start()

        def handle_input(self, connection, data):
            got.append(data)

    def greet(connection):
        connection.write(b"welcome")
        connection.close()

    timers, got = [], []
    implementation = ngi_gevent.Implementation()
    listener = implementation.listener(None, greet)
    implementation.connect(listener.address, Late())
    with gevent.Timeout(PATIENCE):
        while not timers:
            gevent.sleep(0)
    listener.close(lambda listener: None)
    implementation.wait(PATIENCE)
    assert got == [b"welcome"]


def test_a_listener_whose_thread_has_ended_raises(monkeypatch):
    monkeypatch.setattr(mailbox, "CHECK_AFTER", 0.05)

    def listen():
        listeners.append(ngi_gevent.Implementation().listener(None, Upper))

    listeners = []
    in_thread(listen)
    with pytest.raises(ImplementationClosed):
        listeners[0].close()
    listeners[0]._acceptors[0].close()


# The implementation with its own thread.


def test_two_greenlets_can_start_a_threaded():
    with Threaded() as implementation:
        starting = [gevent.spawn(implementation.listener, None, Upper) for _ in range(5)]
        assert len({greenlet.get(timeout=PATIENCE).address for greenlet in starting}) == 5


def test_threaded_serves_a_program_that_does_not_use_gevent(monkeypatch):
    monkeypatch.setattr(mailbox, "CHECK_AFTER", 0.05)
    with Threaded() as implementation:
        listener = implementation.listener(("127.0.0.1", 0), lambda connection: connection.set_handler(Upper()))
        assert blocking.request(implementation.connect, listener.address, ask) is None
        client = blocking.connect(listener.address, implementation.connect, timeout=PATIENCE)
        assert client
        with pytest.raises(ngi_gevent.Timeout):
            implementation.wait(0.05)
        listener.close()
        client.abort()
        implementation.wait(PATIENCE)
    for use in (
        lambda: implementation.connect(listener.address, ask),
        lambda: implementation.listener(None, Upper),
        lambda: listener.connect(ask),
    ):
        with pytest.raises(ImplementationClosed):
            use()
    implementation.close()
    listener.close()
    assert listener.close_wait(1) == 0


class Upper:
    def handle_input(self, connection, data):
        connection.write(data.upper())


@contextlib.contextmanager
def no_room_for_stacks():
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


@contextlib.contextmanager
def no_loop():
    """Make the hub of the new thread fail, since gevent cannot make a loop."""

    class Loop:
        def __init__(self, *arguments, **options):
            raise MemoryError

    before = gevent.config.loop
    gevent.config.loop = Loop
    try:
        yield
    finally:
        gevent.config.loop = before


@pytest.mark.parametrize(("trouble", "error"), [(no_room_for_stacks, RuntimeError), (no_loop, MemoryError)])
def test_a_threaded_that_cannot_start_raises_for_all_callers_and_can_try_again(trouble, error):

    def use():
        begin.wait()
        try:
            implementation.listener(None, Upper)
        except Exception as error:
            raised.append(error)

    before = descriptors()
    implementation, unlucky = Threaded(), Threaded()
    begin, raised = threading.Barrier(6, timeout=PATIENCE), []
    threads = [threading.Thread(target=use, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    with trouble():
        begin.wait()
        for thread in threads:
            thread.join(PATIENCE)
        with pytest.raises(error):
            unlucky.wait()
    assert [type(each) for each in raised] == [error] * 5
    listener = implementation.listener(None, lambda connection: connection.set_handler(Upper()))
    assert blocking.request(implementation.connect, listener.address, ask, timeout=PATIENCE) is None
    for each in implementation, unlucky:
        each.close()
        began = time.monotonic()
        each.end_at_exit()
    assert time.monotonic() - began < EXIT_TIMEOUT  # there is no thread to wait for
    assert descriptors() <= before


COLLECTED_WHILE_GREENLET_CLEANS_UP = """
import builtins, gc, time, gevent, ngi_gevent
class Loop:
    def __init__(self, *arguments, **options): raise MemoryError
gevent.get_hub()
gevent.config.loop = Loop
gc.disable()
imports = builtins.__import__
def collecting(name, *arguments, **options):
    if name == "gc": gc.collect()  # greenlet imports it to find references to the main greenlet of a dead thread
    return imports(name, *arguments, **options)
builtins.__import__ = collecting
for _ in range(20):
    try: ngi_gevent.Threaded().wait()
    except MemoryError: pass
    time.sleep(0.001)  # the thread ends, and the main thread cleans up after it
print("alive")
"""


def test_after_a_failed_start_a_garbage_collection_does_not_crash_greenlet():
    program = [sys.executable, "-c", COLLECTED_WHILE_GREENLET_CLEANS_UP]
    answer = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "alive\n", "")


OUT_OF_DESCRIPTORS = """
import os, resource, threading, ngi_gevent
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
implementation = ngi_gevent.Threaded()
files = []
try:
    while True: files.append(os.open(os.devnull, os.O_RDONLY))
except OSError: pass
def use():
    try: print(implementation.listener(("127.0.0.1", 0), print))
    except Exception as error: print(error, flush=True)
used = threading.Thread(target=use, daemon=True)
used.start()
used.join(20)
for file in files: os.close(file)
print(implementation.listener(("127.0.0.1", 0), print).address[0])
"""


def test_a_threaded_without_descriptors_raises_and_can_try_again():
    program = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", OUT_OF_DESCRIPTORS],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert program.stdout.splitlines() == ["[Errno 24] Too many open files", "127.0.0.1"]
    assert (program.returncode, program.stderr) == (0, "")


def test_an_unused_threaded_starts_no_thread():
    before = set(threading.enumerate())
    Threaded().close()
    assert set(threading.enumerate()) == before


def test_threaded_checks_arguments_at_the_call():
    with Threaded() as implementation:
        with pytest.raises(TypeError, match="address"):
            implementation.listener(8000, Upper)
        with pytest.raises(ValueError, match="backlog"):
            implementation.listener(None, Upper, backlog=-1)
        with pytest.raises(TypeError, match="handler"):
            implementation.connect(("127.0.0.1", 1), None)


def test_a_handler_can_use_its_own_threaded_implementation(caplog):
    class Proxy:
        def handle_input(self, connection, data):
            blocking.request(implementation.connect, upper.address, ask, timeout=PATIENCE)
            try:
                implementation.wait(1)
            except Deadlock:
                connection.write(b"HELLO")

    with Threaded() as implementation:
        upper = implementation.listener(None, lambda connection: connection.set_handler(Upper()))
        proxy = implementation.listener(None, lambda connection: connection.set_handler(Proxy()))
        assert blocking.request(implementation.connect, proxy.address, ask, timeout=PATIENCE) is None
    assert not caplog.records


def test_a_handler_that_raises_system_exit_ends_only_its_connection(caplog):
    class Exit:
        def handle_input(self, connection, data):
            raise SystemExit

    with Threaded() as implementation:
        listener = implementation.listener(None, lambda connection: connection.set_handler(Exit()))
        reason = blocking.request(implementation.connect, listener.address, Hello(), timeout=PATIENCE)
        assert reason == "end of input"
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        caplog.clear()
        assert implementation.listener(None, Upper)


class Hello:
    def connected(self, connection):
        connection.set_handler(self)
        connection.write(b"hello")

    def failed_connect(self, reason):
        pass

    def handle_input(self, connection, data):
        pass


@pytest.mark.parametrize("at", range(1, 46, 4))
def test_wait_returns_if_another_thread_closes_at_that_moment(at):
    """The close happens at each step of the waiting thread."""

    def step():
        nonlocal steps
        steps += 1
        if steps == at:
            implementation.close()

    steps, raised = 0, []
    implementation = Threaded()
    implementation.listener(None, Upper)

    def wait():
        try:
            implementation.wait(PATIENCE)
        except BaseException as error:
            raised.append(error)

    waiting = Steps(wait, step, {"wait", "_running_registry", "_check_open", "call_soon", "post", "join"})
    implementation.close()
    waiting.join()
    assert raised == []


def test_a_wait_with_a_timeout_ends_in_time_while_a_handler_computes():
    busy, go_on = threading.Event(), threading.Event()

    class Busy(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            busy.set()
            assert go_on.wait(PATIENCE)

    client = ngi_gevent.testing.Recorder()
    with Threaded() as implementation:
        implementation.listener(None, Busy().connected).connect(client)
        client.wait_connected().write(b"x")
        assert busy.wait(PATIENCE)
        with pytest.raises(ngi_gevent.Timeout, match="StreamListener"):
            implementation.wait(0.01)
        go_on.set()


def test_join_waits_for_the_end_of_the_thread():
    class Join(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            try:
                implementation.join()
            except Deadlock:
                connection.write(b"deadlock")

    implementation, client = Threaded(), ngi_gevent.testing.Recorder()
    implementation.join()  # the thread was never started
    implementation.listener(None, Join().connected).connect(client)
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("ngi_gevent.Threaded-"))
    client.wait_connected().write(b"x")
    client.expect(b"deadlock")
    with pytest.raises(ngi_gevent.Timeout, match="StreamListener"):
        implementation.join(0.01)
    with pytest.raises(ValueError, match="timeout"):
        implementation.join(-1)
    joining = threading.Thread(target=implementation.join)
    joining.start()
    implementation.close()
    implementation.join(PATIENCE)
    joining.join(PATIENCE)
    assert not joining.is_alive()
    thread.join(1)
    assert not thread.is_alive()


def test_close_does_not_wait_for_a_handler_that_computes():
    computing, go_on, finished = threading.Event(), threading.Event(), []

    class Compute:
        def __init__(self, connection):
            connection.set_handler(self)

        def handle_input(self, connection, data):
            computing.set()
            go_on.wait(5)
            finished.append(data)

    implementation = Threaded()
    listener = implementation.listener(None, Compute)
    with socket.create_connection(listener.address) as client:
        client.sendall(b"x")
        assert computing.wait(PATIENCE)
        implementation.close()
        assert finished == []
        go_on.set()
        implementation.join(PATIENCE)
        assert finished == [b"x"]


COMPUTES_AT_EXIT = """
import socket, threading, time
import ngi_gevent
from ngi_gevent.sockets import threaded

threaded.EXIT_TIMEOUT = 1
computing = threading.Event()

class Compute:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        end = time.monotonic() + 20
        try:
            computing.set()
            while time.monotonic() < end:
                time.sleep(0.001)  # blocks the thread like a computation, but costs less
        finally:
            print("interrupted" if time.monotonic() < end else "done", flush=True)

# With the default linger_timeout, the connection would end at the same moment as the program.
listener = ngi_gevent.Threaded().listener(None, Compute, linger_timeout=0.05)
client = socket.create_connection(listener.address)
client.sendall(b"x")
assert computing.wait(20)
"""


def test_a_handler_that_computes_when_the_program_ends_is_interrupted():
    """The thread must not continue while the interpreter ends, because CPython 3.13 crashes then."""
    program = subprocess.run(
        [sys.executable, "-c", COMPUTES_AT_EXIT], capture_output=True, text=True, timeout=50, check=False
    )
    assert (program.returncode, program.stdout) == (0, "interrupted\n")
    assert "SystemExit" in program.stderr  # the log shows where the handler was


def test_a_handler_that_reconnects_during_the_close_logs_nothing(caplog):
    """At each step of the close on one thread, a handler on the other thread reconnects."""
    used = Flag()

    class Again(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            try:
                implementation.connect(listener.address, ngi_gevent.testing.Recorder())
            finally:
                used.set()

    def use():
        nonlocal used
        used = Flag()
        clients.pop().sendall(b"x")
        used.wait(0.05)

    implementation = Threaded()
    listener = implementation.listener(None, Again)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.address)) for _ in range(20)]
        Steps(implementation.close, use, {"close", "_closes"}).join()
    implementation.join(PATIENCE)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# Scripts.


def test_a_script_asks_three_servers_and_then_ends(tcp):
    answers = []

    class Ask(Hello):
        def handle_input(self, connection, data):
            answers.append(data)
            connection.close()

    addresses = [tcp.listen(Echo).address for _ in range(3)]
    with Inline() as implementation:
        for address in addresses:
            implementation.connect(address, Ask())
        implementation.wait(10)
    assert answers == [b"HELLO"] * 3


def test_wait_raises_an_error_of_a_script_once(tcp, caplog):
    class Bad(Hello):
        def handle_input(self, connection, data):
            raise KeyError(data)

    listener = tcp.listen(Echo)
    implementation = Inline()
    implementation.connect(listener.address, Bad())
    began = time.monotonic()
    with pytest.raises(KeyError, match="HELLO"):
        implementation.wait(10)
    assert time.monotonic() - began < 5
    implementation.wait(10)
    assert not caplog.records
    listener.close()
    implementation.connect(listener.address, ask)  # the handler is a generator, whose failed_connect raises
    with pytest.raises(ngi_gevent.ConnectionFailed):
        implementation.wait(10)
    implementation.close()


def test_further_errors_are_logged(tcp, caplog):
    class Bad(Hello):
        def connected(self, connection):
            raise KeyError

    listener = tcp.listen(Echo)
    implementation = Inline()
    for _ in range(3):
        implementation.connect(listener.address, Bad())
    with gevent.Timeout(PATIENCE):
        while len(caplog.records) < 2:
            gevent.sleep(0)
    with pytest.raises(KeyError):
        implementation.wait(10)
    implementation.wait(10)
    implementation.close()


def test_errors_are_logged_if_no_wait_follows(tcp, caplog):
    class Bad(Hello):
        def connected(self, connection):
            connection.set_handler(self)
            tcp.connections.append(connection)
            connection.when_closed(tcp.happened)
            tcp.happened()
            raise KeyError

        def handle_close(self, connection, reason):
            raise ValueError

    listener = tcp.listen(Echo)
    with Inline() as implementation:
        implementation.connect(listener.address, Bad())
        tcp.until(lambda: tcp.connections and not tcp.connections[0])
    tcp.until(lambda: len(caplog.records) == 2)
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError]


class Interrupted(Hello):
    """A handler in which Ctrl-C arrives."""

    def handle_input(self, connection, data):
        raise KeyboardInterrupt


def test_ctrl_c_in_a_handler_of_a_script_that_does_not_wait_reaches_the_main_greenlet(tcp, caplog):
    listener = tcp.listen(Echo)
    with Inline() as implementation:
        implementation.connect(listener.address, Interrupted())
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(PATIENCE)
        implementation.wait(PATIENCE)  # the callback does not raise it again
    assert [record.exc_info[0] for record in caplog.records] == [KeyboardInterrupt]


def test_ctrl_c_in_a_handler_of_a_script_that_waits_is_raised_by_wait(tcp, caplog):
    listener = tcp.listen(Echo)
    with Inline() as implementation:
        implementation.connect(listener.address, Interrupted())
        with pytest.raises(KeyboardInterrupt):
            implementation.wait(PATIENCE)
    assert not caplog.records


def test_a_server_that_never_answers_is_a_timeout(tcp):
    listener = tcp.listen()
    client = Witness(tcp)
    with Inline() as implementation:
        implementation.connect(listener.address, client)
        with pytest.raises(ngi_gevent.Timeout, match="StreamConnection"):
            implementation.wait(0.03)
    tcp.until(lambda: client.connection._lifecycle.is_gone())
    assert client.closed == "stopped"


# Contexts.


def test_handlers_run_in_the_context_of_their_listener_or_connect(socket_stage):
    variable = contextvars.ContextVar("variable", default="nothing")

    class Tell(Witness):
        def connected(self, connection):
            self.seen = [variable.get()]
            variable.set("changed by a handler")
            super().connected(connection)

        def handle_input(self, connection, data):
            self.seen.append(variable.get())
            super().handle_input(connection, data)

        def handle_close(self, connection, reason):
            self.seen.append(variable.get())
            super().handle_close(connection, reason)

    variable.set("listener")
    listener = socket_stage.listen(Tell)
    variable.set("connect")
    client = socket_stage.client(listener, Tell)
    variable.set("later")
    client.connection.write(b"x")
    socket_stage.until(lambda: socket_stage.served and socket_stage.served[0].data)
    second = socket_stage.client(listener, Tell)
    socket_stage.until(lambda: len(socket_stage.served) == 2)
    second.connection.close()
    socket_stage.until(lambda: socket_stage.served[1].closed)
    assert client.seen == ["connect"]
    assert socket_stage.served[0].seen == ["listener", "changed by a handler"]
    assert socket_stage.served[1].seen == ["listener", "changed by a handler"]
    assert second.seen == ["later"]
    assert variable.get() == "later"


def test_iterators_run_in_the_context_of_their_writelines(tcp):
    variable = contextvars.ContextVar("variable")

    class Lines(Witness):
        def handle_input(self, connection, data):
            variable.set(b"the handler's")
            connection.writelines(variable.get() for _ in range(1))

    client, served = tcp.talk(Lines)
    client.connection.write(b"x")
    tcp.until(lambda: client.data == b"the handler's")


# Flags, and waits for them.


def test_without_a_hub_a_wait_for_a_flag_is_native():
    def wait():
        assert not flag.wait(0.01)
        waiting.set()
        return flag.wait(PATIENCE), get_hub_if_exists()

    from gevent._hub_local import get_hub_if_exists

    flag, waiting = Flag(), threading.Event()
    threading.Thread(target=lambda: (waiting.wait(), flag.set())).start()
    assert in_thread(wait) == (True, None)
    assert flag.wait(0)
    assert flag.is_set()


@pytest.mark.parametrize("seconds", [0, 1e-7])
def test_a_wait_of_no_time_ends(seconds):
    assert not Flag().wait(seconds)
    assert not Flag().wait(seconds, alone=True)
    assert in_thread(Flag().wait, seconds) is False


def test_with_a_hub_greenlets_run_during_a_wait_for_a_flag():
    flag, ticks = Flag(), []
    gevent.spawn(lambda: (gevent.sleep(0), ticks.append(1)))
    assert not flag.wait(0.05)
    assert ticks
    timer = threading.Timer(0.05, flag.set)
    timer.start()
    assert flag.wait(PATIENCE)
    timer.join()


def test_waiting_for_a_closed_threaded_waits_for_its_callbacks(monkeypatch):
    monkeypatch.setattr(hub_registry, "CHECK_INTERVAL", 0.001)  # after this time, all output is delivered
    release, begun = threading.Event(), threading.Event()

    class Server(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            begun.set()
            with gevent.Timeout(PATIENCE):
                while not release.is_set():
                    gevent.sleep(0.001)

    implementation = ngi_gevent.Threaded()
    listener = implementation.listener(None, Server)
    client = blocking.connect(listener.address, implementation.connect, PATIENCE)
    client.write(b"x")
    assert begun.wait(PATIENCE)
    implementation.close()
    with pytest.raises(ngi_gevent.Timeout):
        implementation.wait(0.05)
    release.set()
    implementation.wait(PATIENCE)
    implementation.join(PATIENCE)


def test_a_block_of_while_open_needs_the_thread_of_the_hub():
    client = ngi_gevent.testing.Recorder()
    with Threaded() as implementation:
        implementation.listener(None, ngi_gevent.testing.Recorder().connected).connect(client)
        with pytest.raises(RuntimeError, match="thread"), client.wait_connected().while_open():
            raise AssertionError("the block runs")


def test_a_thread_drains_a_connection_of_a_busy_hub_within_its_timeout():
    busy, go_on = threading.Event(), threading.Event()

    class Busy(ngi_gevent.testing.Recorder):
        def handle_input(self, connection, data):
            busy.set()
            assert go_on.wait(PATIENCE)
            super().handle_input(connection, data)

    served, client = Busy(), ngi_gevent.testing.Recorder()
    with Threaded() as implementation:
        try:
            implementation.listener(None, served.connected).connect(client)
            client.wait_connected().write(b"x")
            assert busy.wait(PATIENCE)
            served.connection.write(b"answer")
            assert served.connection.output_pending == 6
            with pytest.raises(Timeout):
                served.connection.drain(0.01, below=1)
        finally:
            go_on.set()
        served.connection.drain(PATIENCE, below=1)
        assert served.connection.output_pending == 0
        client.expect(b"answer")


def test_a_drain_in_a_thread_ends_when_the_hub_ends():
    client = ngi_gevent.testing.Recorder()
    implementation = Threaded()
    implementation.listener(None, lambda connection: None).connect(client)
    connection = client.wait_connected()
    connection.write(bytes(16_000_000))
    implementation.close()
    with pytest.raises(ConnectionClosed):
        connection.drain(PATIENCE, below=1)
    implementation.join(PATIENCE)


def test_a_flag_can_be_set_again_before_its_waiting_thread_continues():
    """Connections set the flag of a drain again whenever they send more."""
    flag = Flag()
    waiting = threading.Thread(target=flag.wait, daemon=True)
    waiting.start()
    while not flag._wakers:
        time.sleep(0.001)
    with flag._lock:  # the thread needs this lock before it can continue
        flag.set()
        flag.set()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_drain_raises_if_the_hub_never_took_the_output():
    def serve():
        listener = ngi_gevent.listener(None, connections.append)
        blocking.connect(listener.address, timeout=PATIENCE)
        while not connections:
            gevent.sleep(0.001)
        connected.set()
        written.wait(PATIENCE)  # blocks the hub, which then ends with its thread

    connections, connected, written = [], threading.Event(), threading.Event()
    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    connected.wait(PATIENCE)
    connections[0].write(b"in vain")
    written.set()
    serving.join(PATIENCE)
    with pytest.raises(ConnectionClosed):
        connections[0].drain(PATIENCE)
