"""PROXY headers from and to widely used balancers: haproxy, and nginx with its module ``stream``."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import socket
import subprocess
from pathlib import Path

import gevent
import pytest
from certificates import certificate, client_context, server_context
from stages import PATIENCE

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.proxy_protocol import header

CLIENT, FRONT = ("192.0.2.1", 4711), ("192.0.2.9", 443)
CLIENT6, FRONT6 = ("2001:db8::1", 4711, 0, 0), ("2001:db8::9", 443, 0, 0)

TRUSTED = ["127.0.0.0/8", "unix"]


class Served(testing.Recorder):
    """Answers in upper case, and adds itself to its listener's list."""

    def __init__(self, connections, connection):
        connections.append(connection)
        super().__init__(connection)

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


@contextlib.contextmanager
def serving(address=None, listeners=None, **options):
    """Listen behind a balancer; yield the address, and the list of all connections."""
    connections = []
    with ngi_gevent.Implementation() as implementation:
        server = functools.partial(Served, connections)
        listener = implementation.listener(address, server, proxy_protocol=TRUSTED, **options)
        if listeners is not None:
            listeners.append(listener)
        yield listener.address, connections


@contextlib.contextmanager
def running(command, sock, environment=()):
    """Run a balancer that listens on *sock*, which it inherits."""
    with subprocess.Popen(
        command,
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **dict(environment)},
    ) as process:
        try:
            yield
        finally:
            process.terminate()  # nginx then ends its worker, too
            print(process.communicate(timeout=PATIENCE)[0].decode(errors="replace"))  # a failing test shows this


def haproxy(folder, sock, server, bind=""):
    """Run haproxy in front of *server*, which can include options."""
    if not shutil.which("haproxy"):
        pytest.skip("haproxy is not installed")
    config = folder / "haproxy.cfg"
    config.write_text(
        f"""
defaults
  mode tcp
  timeout connect {PATIENCE}s
  timeout client {PATIENCE}s
  timeout server {PATIENCE}s
listen front
  bind fd@{sock.fileno()} {bind}
  server backend {server}
"""
    )
    return running(["haproxy", "-db", "-f", str(config)], sock)


def stream_module():
    """Return the path of nginx's module ``stream``, or skip the test."""
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    built = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"--modules-path=(\S+)", built)
    module = Path(found[1] if found else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    if not module.exists():
        pytest.skip("nginx has no module stream")
    return module


def nginx(folder, sock, server, bind="", more=""):
    """Run nginx in front of *server*."""
    host, port = sock.getsockname()
    config = folder / "nginx.conf"
    config.write_text(
        f"""
load_module {stream_module()};
user {pwd.getpwuid(os.getuid()).pw_name};
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
stream {{
  server {{
    listen {host}:{port} {bind};
    proxy_pass {server};
    proxy_protocol on;
    {more}
  }}
}}
"""
    )
    # The variable by which nginx passes its sockets to a new version of itself.
    environment = {"NGINX": f"{sock.fileno()};"}
    return running(["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)], sock, environment)


@pytest.fixture
def front():
    """A listening socket, for a balancer."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def ask(front, **options):
    """Make a request through the balancer; return the client's address."""
    client = testing.Recorder()
    ngi_gevent.connect(front.getsockname(), client, **options)
    connection = client.wait_connected(PATIENCE)
    connection.write(b"hello")
    client.expect(b"HELLO", PATIENCE)
    connection.close()
    return connection.local_address


class Asking(testing.Recorder):
    """A client that asks as soon as it is connected."""

    def connected(self, connection):
        super().connected(connection)
        connection.write(b"hello")


OPTIONS = [
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2-ssl-cn",
    "send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,cert-cn,authority",
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_haproxy_names_the_client(tmp_path, front, options):
    with serving() as ((host, port), connections), haproxy(tmp_path, front, f"{host}:{port} {options}"):
        client = ask(front)
        assert [connection.peer_address for connection in connections] == [client]
        assert connections[0].proxy_address[0] == "127.0.0.1"
        assert connections[0].proxy_address != client


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_haproxy_names_the_client_before_tls(tmp_path, front, options):
    with (
        serving(ssl_context=server_context()) as ((host, port), connections),
        haproxy(tmp_path, front, f"{host}:{port} ssl verify none {options}"),
    ):
        client = ask(front)
        assert [connection.peer_address for connection in connections] == [client]


@pytest.mark.slow
def test_haproxy_names_the_client_on_a_unix_socket(tmp_path, front):
    path = str(tmp_path / "socket")
    with serving(path) as (_, connections), haproxy(tmp_path, front, f"unix@{path} send-proxy-v2"):
        assert ask(front) == connections[0].peer_address
        assert connections[0].proxy_address == ""


@pytest.mark.slow
def test_haproxy_passes_more_about_a_client_with_tls(tmp_path, front):
    """Its header includes the requested host name, the cipher and more, all of which are skipped."""
    pem = tmp_path / "front.pem"
    pem.write_bytes(certificate("localhost", "127.0.0.1", "::1").private_key_and_cert_chain_pem.bytes())
    options = OPTIONS[-1].replace("ssl,", "ssl,ssl-cipher,cert-sig,cert-key,")
    with (
        serving() as ((host, port), connections),
        haproxy(tmp_path, front, f"{host}:{port} {options}", bind=f"ssl crt {pem}"),
    ):
        client = ask(front, ssl_context=client_context(), server_hostname="localhost")
        assert [connection.peer_address for connection in connections] == [client]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["send-proxy-v2", "send-proxy"])
def test_haproxy_checks_whether_the_server_is_alive(tmp_path, front, options):
    """Version 2 of the header has the command LOCAL for checks.  Version 1 has the addresses of the check itself."""
    check = f"{options} check check-send-proxy inter 20ms"
    with serving() as ((host, port), connections), haproxy(tmp_path, front, f"{host}:{port} {check}"):
        with gevent.Timeout(PATIENCE):
            while not connections:
                gevent.sleep(0.005)
        assert connections[0].peer_address == connections[0].proxy_address
        client = ask(front)
        assert client in [connection.peer_address for connection in connections]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "fails"), [("", True), ("check-ssl verify none", False)])
def test_haproxy_checks_a_server_with_tls_without_a_failed_handshake(tmp_path, front, more, fails):
    """haproxy passes the clients' TLS on.  Without ``check-ssl``, each check disconnects in the middle of the
    handshake.
    """
    listeners = []
    check = f"send-proxy-v2 check check-send-proxy inter 20ms {more}"
    with (
        serving(listeners=listeners, ssl_context=server_context()) as ((host, port), connections),
        haproxy(tmp_path, front, f"{host}:{port} {check}"),
    ):
        client = ask(front, ssl_context=client_context(), server_hostname="localhost")
        with gevent.Timeout(PATIENCE):
            while listeners[0].metrics().accepted < 5:
                gevent.sleep(0.005)
        assert (listeners[0].metrics().failed_handshakes > 0) == fails
        assert client in [connection.peer_address for connection in connections]


@pytest.mark.slow
def test_haproxy_checks_a_server_whose_clients_wait_in_haproxy(tmp_path, front):
    """With ``maxconn`` below ``max_connections``, a crowd does not make the checks of a server with TLS fail."""
    listeners = []
    options = "maxconn 1 send-proxy-v2 check check-send-proxy inter 20ms check-ssl verify none"
    with (
        serving(listeners=listeners, ssl_context=server_context(), max_connections=2) as ((host, port), _),
        haproxy(tmp_path, front, f"{host}:{port} {options}"),
    ):
        clients = [Asking(), Asking()]
        for client in clients:
            ngi_gevent.connect(front.getsockname(), client, ssl_context=client_context(), server_hostname="localhost")
        with gevent.Timeout(PATIENCE):
            while not any(client.data for client in clients):
                gevent.sleep(0.005)
            accepted = listeners[0].metrics().accepted
            while listeners[0].metrics().accepted < accepted + 5:
                gevent.sleep(0.005)
            first, second = sorted(clients, key=lambda client: client.data, reverse=True)
            assert not second.data
            first.connection.close()
            while not second.data:
                gevent.sleep(0.005)
        second.connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("named", [(CLIENT, FRONT), (CLIENT6, FRONT6), (CLIENT, FRONT6)], ids=["4", "6", "both"])
def test_haproxy_accepts_the_headers_of_the_library(tmp_path, front, options, version, named):
    with (
        serving() as ((host, port), connections),
        haproxy(tmp_path, front, f"{host}:{port} {options}", bind="accept-proxy"),
    ):
        ask(front, proxy_header=header(*named, version=version))
        expected = ("::ffff:192.0.2.1", 4711, 0, 0) if named == (CLIENT, FRONT6) else named[0]
        assert [connection.peer_address for connection in connections] == [expected]
        client = ask(front, proxy_header=header(None, version=version))
        assert connections[1].peer_address == client


@pytest.mark.slow
def test_nginx_names_the_client(tmp_path, front):
    with serving() as ((host, port), connections), nginx(tmp_path, front, f"{host}:{port}"):
        client = ask(front)
        assert [connection.peer_address for connection in connections] == [client]
        assert connections[0].proxy_address[0] == "127.0.0.1"


@pytest.mark.slow
def test_nginx_names_the_client_before_tls_and_on_a_unix_socket(tmp_path, front):
    path = str(tmp_path / "socket")
    with (
        serving(path, ssl_context=server_context()) as (_, connections),
        nginx(tmp_path, front, f"unix:{path}", more="proxy_ssl on;"),
    ):
        assert ask(front) == connections[0].peer_address


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_nginx_accepts_the_headers_of_the_library(tmp_path, front, version):
    """nginx uses the address in the header if its module ``realip`` trusts this host.

    This fails for an IPv6 client that nginx receives on IPv4: its header has one address of each family, which is
    invalid.
    """
    with (
        serving() as ((host, port), connections),
        nginx(tmp_path, front, f"{host}:{port}", bind="proxy_protocol", more="set_real_ip_from 127.0.0.1;"),
    ):
        ask(front, proxy_header=header(CLIENT, FRONT, version=version))
        assert connections[0].peer_address == CLIENT
