"""Calls that other native threads leave for a hub's thread, even while the hub is destroyed."""

from __future__ import annotations

import contextvars
import json
import subprocess
import sys
import threading
from queue import Queue

import gevent
import pytest
from stages import PATIENCE, Steps, in_thread

import ngi_gevent
from ngi_gevent import ConnectionClosed, ImplementationClosed, blocking
from ngi_gevent.core.threads import get_ident
from ngi_gevent.sockets import mailbox as module
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.testing import Recorder


def raised(function, *arguments):
    """Return the type of the exception that *function* raises, or None."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error)


def test_a_call_returns_its_result_and_raises_its_exception():
    mailbox = Dispatcher.current().mailbox

    def call():
        with pytest.raises(ZeroDivisionError):
            mailbox.call(lambda: 1 / 0)
        return mailbox.call(get_ident)

    assert in_thread(call) == mailbox.call(get_ident) == get_ident()


def test_calls_are_made_in_order_and_in_one_turn():
    mailbox, made = Dispatcher.current().mailbox, []
    in_thread(lambda: [mailbox.post(made.append, number) for number in range(3)])
    gevent.sleep(0)
    assert made == [0, 1, 2]


def test_a_call_that_raises_does_not_delay_later_calls(monkeypatch):
    mailbox, made, errors = Dispatcher.current().mailbox, gevent.event.Event(), []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, *_: errors.append(kind))
    in_thread(lambda: (mailbox.post(lambda: 1 / 0), mailbox.post(made.set)))
    assert made.wait(PATIENCE)
    assert errors == [ZeroDivisionError]


def test_many_calls_that_end_connections_are_made_one_after_another(tcp, capfd):
    """Each call that ends a connection makes the remaining calls.  These must not nest."""
    client, served = tcp.talk()
    other_thread = threading.Thread(target=lambda: [served.connection.close() for _ in range(1000)])
    other_thread.start()
    other_thread.join()  # all calls remain, since the loop has not run
    tcp.until(lambda: client.closed and served.gone)
    assert (client.closed, served.closed, capfd.readouterr().err) == ("end of input", None, "")


def test_iterators_from_other_threads_run_in_the_context_of_their_write(tcp):
    variable = contextvars.ContextVar("variable", default=b"none")

    def give():
        variable.set(b"the thread's")
        served.connection.writelines(variable.get() for _ in range(1))

    client, served = tcp.talk()
    in_thread(give)
    tcp.until(lambda: client.data == b"the thread's")


def test_a_closed_mailbox_refuses_calls_and_running_calls_return():
    inside, closing, mailboxes = threading.Event(), threading.Event(), Queue()

    def work():
        inside.set()
        with gevent.Timeout(PATIENCE):
            while not closing.is_set():
                gevent.sleep(0.001)
        gevent.sleep(0.001)
        return "done"

    def serve():
        mailbox = Dispatcher.current().mailbox
        mailboxes.put(mailbox)
        with gevent.Timeout(PATIENCE):
            while not inside.is_set():
                gevent.sleep(0.001)
        closing.set()
        mailbox.close()
        gevent.get_hub().destroy()

    thread = threading.Thread(target=serve)
    thread.start()
    mailbox = mailboxes.get(timeout=PATIENCE)
    assert mailbox.call(work) == "done"
    thread.join(PATIENCE)
    assert not mailbox.post(print)
    with pytest.raises(ImplementationClosed):
        mailbox.call(print)


def test_a_closed_mailbox_refuses_calls_before_its_hub_is_destroyed():
    def serve():
        mailbox = Dispatcher.current().mailbox
        mailbox.close()
        posted = mailbox.post(print), mailbox.call_soon(print)
        gevent.get_hub().destroy(destroy_loop=True)
        return posted

    assert in_thread(serve) == (False, False)


def test_a_mailbox_makes_its_pending_calls_before_it_is_closed():
    mailboxes, made, go_on = Queue(), [], threading.Event()

    def serve():
        mailbox = Dispatcher.current().mailbox
        mailboxes.put(mailbox)
        assert go_on.wait(PATIENCE)  # a native wait, since the loop does not run
        mailbox.close()
        gevent.get_hub().destroy()

    thread = threading.Thread(target=serve)
    thread.start()
    mailbox = mailboxes.get(timeout=PATIENCE)
    assert mailbox.post(made.append, "posted")
    assert mailbox.call_soon(made.append, "soon")
    go_on.set()
    thread.join(PATIENCE)
    assert made == ["posted", "soon"]


def test_every_call_ends_gracefully_while_the_hub_is_destroyed(monkeypatch):
    """Other threads get the exception for a closed connection or for an ended thread, and no other exception."""
    monkeypatch.setattr(module, "CHECK_AFTER", 0.05)
    listeners, connections, raised_by, threads = [], [], [], []

    def serve_and_destroy():
        listeners.append(ngi_gevent.Implementation().listener(None, connections.append))
        for _ in range(40):
            blocking.connect(listeners[0].address, timeout=PATIENCE)
        with gevent.Timeout(PATIENCE):
            while len(connections) < 40:
                gevent.sleep(0.001)
        gevent.get_hub().destroy(destroy_loop=True)

    def call():
        connection, closed = connections.pop(), []
        for method, argument in (
            (connection.set_handler, Recorder()),
            (connection.write, b"x"),
            (connection.writelines, [b"x"]),
        ):
            raised_by.append(raised(method, argument))
        threads.append(threading.Thread(target=lambda: raised_by.append(raised(listeners[0].close))))
        threads[-1].start()
        connection.when_closed(lambda: closed.append(1))
        last.append((connection, closed))

    last = []
    Steps(serve_and_destroy, call, {"destroy"})
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(threads) > 5
    assert set(raised_by) <= {None, ConnectionClosed, ImplementationClosed}
    connection, closed = last[-1]
    assert closed == [1]
    assert not connection
    for end in connection.close, connection.abort:
        end()


def test_when_closed_calls_back_if_the_connection_ends_at_that_moment(tcp):
    """The connection ends at each step that the other thread takes in ``when_closed``."""

    def goes_at(number):
        """End a connection at the step *number*, and return the number of steps."""

        def step():
            nonlocal steps
            steps += 1
            if steps == number:
                connection.abort()
                assert gone.wait(PATIENCE)

        peer = tcp.peer(listener)
        tcp.until(lambda: len(tcp.served) == number)
        connection = tcp.served[-1].connection
        called, gone, steps = gevent.event.Event(), gevent.event.Event(), 0
        connection.when_closed(gone.set)
        Steps(
            lambda: connection.when_closed(called.set), step, {"when_closed", "_handed_over", "_is_elsewhere", "post"}
        )
        assert steps < number or called.wait(PATIENCE)
        peer.close()
        return steps

    listener, number = tcp.listen(), 1
    while goes_at(number) >= number:
        number += 1
    assert number > 5


def test_a_thread_with_a_reused_ident_is_not_taken_for_the_ended_thread(monkeypatch):
    """Linux reuses idents at once."""
    monkeypatch.setattr(module, "CHECK_AFTER", 0.05)
    listeners = []

    def listen():
        listeners.append(ngi_gevent.Implementation().listener(None, print))
        return get_ident()

    def close():
        listener = listeners[-1] if get_ident() == ident else None
        return listener and (listener._mailbox.is_here(), raised(listener.close))

    for _ in range(20):
        ident = in_thread(listen)
        told = in_thread(close)
        listeners[-1]._acceptors[0].close()
        if told is not None:
            assert told == (False, ImplementationClosed)
            return
    pytest.skip("no ident was reused")


FORK = """
import json, os, signal, sys, threading
import ngi_gevent, ngi_gevent.blocking
from ngi_gevent.core.threads import make_lock

def raised(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return type(error).__name__

connections, locks, held, over = [], [], threading.Event(), threading.Event()

def hold():
    with implementation._start.registry.mailbox.lock, implementation._starting, locks[0]:
        held.set()
        over.wait()

with ngi_gevent.Threaded() as implementation:
    listener = implementation.listener(None, connections.append)
    client = ngi_gevent.blocking.connect(listener.address, implementation.connect)
    while not connections:
        pass
    locks.append(make_lock())
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    ready, answer = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        results = [raised(connections[0].write, b"x"), bool(connections[0]), raised(listener.connect, client)]
        implementation.close()
        with locks[0]:
            os.write(answer, json.dumps(results).encode())
        os._exit(0)
    over.set()
    thread.join()
    os.waitpid(pid, 0)
    os.close(answer)
    print(json.dumps([json.loads(os.read(ready, 1000) or "null"), bool(connections[0])]))
    client.close()
"""


def test_a_forked_child_has_free_locks_and_its_parents_hubs_refuse_calls():
    program = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=50)
    assert program.returncode == 0, program.stderr
    assert json.loads(program.stdout) == [["ConnectionClosed", False, "ImplementationClosed"], True]
