"""Services: each is a server together with options for its listener."""

from __future__ import annotations

import pytest

import ngi_gevent
from ngi_gevent import testing


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


def test_a_service_is_a_server():
    service = ngi_gevent.Service(Echo, idle_timeout=100)
    assert testing.converse(service, [b"hello"]).data == b"HELLO"
    assert service.server is Echo
    assert repr(service) == f"<Service {Echo!r}, options: idle_timeout>"


def test_a_listener_uses_the_options_of_a_service(ngi_implementation):
    with pytest.raises(ValueError, match=r"idle_timeout .*-1"):
        ngi_implementation.listener(None, ngi_gevent.Service(Echo, idle_timeout=-1))


def test_options_of_a_call_replace_options_of_its_service(ngi_implementation):
    listener = ngi_implementation.listener(None, ngi_gevent.Service(Echo, idle_timeout=-1), idle_timeout=100)
    client = testing.Recorder()
    listener.connect(client)
    client.wait_connected().write(b"hello")
    client.expect(b"HELLO")
    listener.close()


def test_a_service_in_a_service_keeps_its_options():
    inner = ngi_gevent.Service(Echo, idle_timeout=100, backlog=3)
    outer = ngi_gevent.Service(inner, idle_timeout=5)
    assert outer.server is Echo
    assert outer.options == {"idle_timeout": 5, "backlog": 3}
    assert inner.options == {"idle_timeout": 100, "backlog": 3}


def test_a_listener_on_a_faulty_network_uses_the_options_of_a_service(ngi_implementation):
    faulty = testing.Faulty(ngi_implementation, testing.Plan())
    with pytest.raises(ValueError, match=r"idle_timeout .*-1"):
        faulty.listener(None, ngi_gevent.Service(Echo, idle_timeout=-1))


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [(None, {}, "must be a callable"), (Echo, {"idle_timeuot": 5, "workers": 2}, "got idle_timeuot=5")],
)
def test_invalid_arguments_of_a_service_are_refused(server, options, message):
    with pytest.raises(TypeError, match=message):
        ngi_gevent.Service(server, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idletimeout": 4}, r"option of listener; got idletimeout=4; did you mean idle_timeout\?$"),
        ({"max_per_host": 3}, r"option of listener; got max_per_host=3; pass limits=Limits\(max_per_host=3\)$"),
        ({"x": 5, "idle_timeout": 1}, "option of listener; got x=5$"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_probable_name(ngi_implementation, options, message):
    for call in ngi_gevent.Service, lambda server, **options: ngi_implementation.listener(None, server, **options):
        with pytest.raises(TypeError, match=message):
            call(print, **options)
