"""A proxy, optionally with TLS.  It relays each client to the first upstream that it can connect to.

If an upstream cannot be reached, it is tried last from then on.  With --send-proxy, each upstream receives the address
of the client in a header of the PROXY protocol.  With --trust, the proxy itself receives it in this way from a load
balancer in front of it.

    python examples/proxy.py 127.0.0.1:8016 127.0.0.1:8017
    echo hello out there | nc -N 127.0.0.1 8000

With TLS, the proxy needs a file with a certificate and its key, in PEM. tls_echo.py shows how to make one.
"""

from __future__ import annotations

import argparse
import logging
import signal
import ssl
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import gevent

import ngi_gevent
from ngi_gevent.proxy_protocol import header
from ngi_gevent.relay import relay

#: Seconds for a connection attempt to one upstream.  The client waits for all attempts that fail.
CONNECT_TIMEOUT = 2.0

#: Seconds without data after which a client or an upstream is disconnected.
IDLE_TIMEOUT = 300.0

log = logging.getLogger("proxy")


class Upstreams:
    """Addresses, in the order in which they are tried."""

    def __init__(self, addresses: list[Any]) -> None:
        self.addresses = addresses

    def failed(self, address: Any) -> None:
        """Try *address* last from now on."""
        self.addresses.remove(address)
        self.addresses.append(address)


class Proxied:
    """A client, until it is connected to an upstream.

    Until then, the client has no handler, so nothing is read from it.

    :param connect: connects to an upstream; called with its address and a client connect handler.
    """

    def __init__(self, client: Any, upstreams: Upstreams, connect: Callable[[Any, Any], object]) -> None:
        self._client = client
        self._upstreams = upstreams
        self._connect = connect
        self._left = list(upstreams.addresses)
        self._try_next()

    def _try_next(self) -> None:
        self._address = self._left.pop(0)
        self._connect(self._address, self)

    def connected(self, upstream: Any) -> None:
        # From now on, each side is read only as fast as the other side accepts the data.
        relay(self._client, upstream)

    def failed_connect(self, reason: Any) -> None:
        log.warning("unable to connect to upstream %s: %s", self._address, reason)
        self._upstreams.failed(self._address)
        if self._left and self._client:
            self._try_next()
        else:
            self._client.abort()


def proxy_server(
    addresses: list[Any], version: int | None = None, connect: Callable[..., object] = ngi_gevent.connect
) -> Callable[[Any], Proxied]:
    """Return a server that relays its clients to *addresses*.

    :param version: the version of the PROXY headers for upstreams; None to send none.
    """
    upstreams = Upstreams(list(addresses))
    options = {"timeout": CONNECT_TIMEOUT, "idle_timeout": IDLE_TIMEOUT}

    def serve(client: Any) -> Proxied:
        def connect_for_client(address: Any, handler: Any) -> None:
            # Behind another proxy, the client has connected to that one, and only that one has its address.
            destination = client.local_address if client.proxy_address is None else None
            named = None if version is None else header(client.peer_address, destination, version=version)
            connect(address, handler, proxy_header=named, **options)

        return Proxied(client, upstreams, connect_for_client)

    return serve


def host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"an upstream must be HOST:PORT; got {text!r}")
    return host.strip("[]"), int(port)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--certificate", help="file with a certificate and its key, to speak TLS with clients")
    parser.add_argument(
        "--trust", action="append", type=ip_network, metavar="NETWORK", help="network of a balancer that sends headers"
    )
    parser.add_argument("--send-proxy", type=int, choices=[1, 2], metavar="VERSION", help="send PROXY headers")
    parser.add_argument("upstream", nargs="+", type=host_and_port, help="HOST:PORT")
    options = parser.parse_args()

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    context = None
    if options.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    listener = ngi_gevent.listener(
        ("127.0.0.1", options.port),
        proxy_server(options.upstream, options.send_proxy),
        ssl_context=context,
        proxy_protocol=options.trust,
        idle_timeout=IDLE_TIMEOUT,
    )
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
