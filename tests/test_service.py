"""Services: a server with the options of its listener."""

from __future__ import annotations

import pytest

import ngi_gevent
from ngi_gevent import testing


class Echo:
    def __init__(self, connection):
        connection.set_handler(self)

    def handle_input(self, connection, data):
        connection.write(data.upper())


def test_a_service_is_a_server(ngi_implementation):
    service = ngi_gevent.Service(Echo, idle_timeout=100)
    client = testing.Recorder()
    listener = ngi_implementation.listener(None, service, **service.options)
    listener.connect(client)
    client.wait_connected().write(b"hello")
    client.expect(b"HELLO")
    listener.close()
    assert service.server is Echo
    assert repr(service) == f"<Service {Echo!r}, options: idle_timeout>"


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [(None, {}, "not callable"), (Echo, {"idle_timeuot": 5, "workers": 2}, "got idle_timeuot, workers$")],
)
def test_what_is_no_service_is_refused(server, options, message):
    with pytest.raises(TypeError, match=message):
        ngi_gevent.Service(server, **options)
