"""What gevent's loops do differently, which nobody who has a connection should notice."""

from __future__ import annotations

import contextlib
import socket
import warnings

import gevent
import pytest
from gevent.event import Event
from stages import PATIENCE, Witness

from ngi_gevent.core.threads import Flag, allocate_lock, start_new_thread
from ngi_gevent.sockets.event_loop import for_timer, is_libuv, run_callback_threadsafe
from ngi_gevent.sockets.idle import IdleTimer
from ngi_gevent.sockets.network import Network


def test_the_loop_is_known_by_its_name():
    """Of libuv, gevent tells in no other way; the day that it is called otherwise, this says so."""
    loop = gevent.get_hub().loop
    assert is_libuv(loop) == ("libuv" in str(gevent.config.loop))
    if is_libuv(loop):
        with pytest.raises(TypeError, match="prepare"):
            loop.prepare()
    else:
        loop.prepare().close()


def test_what_a_peer_sent_just_before_it_was_reset_arrives_and_then_the_reset(tcp):
    """With libuv, a watcher calls but once for the two."""

    class Late(Witness):
        """Takes its time with the first of the input, while the rest of it and the reset arrive."""

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"first":
                self.release.wait(PATIENCE)

        release = Event()

    listener = tcp.listen(Late)
    peer = socket.create_connection(listener.address)
    peer.sendall(b"first")
    tcp.until(lambda: tcp.served and tcp.served[0].data)
    peer.sendall(b"last")
    Network().reset_on_close(peer)
    peer.close()
    Late.release.set()
    tcp.until(lambda: tcp.served[0].closed)
    assert tcp.served[0].data == b"firstlast"
    assert isinstance(tcp.served[0].closed, ConnectionResetError)


@pytest.mark.parametrize("seconds", [0, 1e-7])
def test_a_moment_is_no_shorter_than_the_loop_counts(seconds):
    """Of what is, libuv's warns; and one of none is no timer, but something that must not be stopped at any time."""
    loop = gevent.get_hub().loop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timer = loop.timer(for_timer(loop, seconds))
    with contextlib.closing(timer):
        assert "timer" in type(timer).__name__
        assert not Flag().wait(seconds)


def test_nothing_for_a_moment_is_noticed():
    over = Event()
    timer = IdleTimer(gevent.get_hub().loop, Network.now, 1e-7, lambda: False, over.set)
    assert over.wait(PATIENCE)
    timer.close()


def handles(loop):
    """What libuv's loop has, in which state; libev's tells nothing."""
    if not is_libuv(loop):
        return []
    return [(handle.type, handle.active, handle.ref, handle.closing) for handle in loop.debug()]


def test_another_thread_changes_nothing_of_the_loop_when_it_hands_a_call_over():
    """The loop's own thread may be going through its queues meanwhile, which with libuv crashed the process."""
    loop = gevent.get_hub().loop
    called = Event()

    def hand_over():
        run_callback_threadsafe(loop, called.set)
        handed_over.release()

    handed_over = allocate_lock()
    handed_over.acquire()
    before = handles(loop)
    start_new_thread(hand_over, ())
    handed_over.acquire()  # natively: the loop does nothing meanwhile
    assert handles(loop) == before
    assert called.wait(PATIENCE)
