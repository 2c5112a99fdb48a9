r"""The echo server, the same handler, over TLS.

It needs a file with a certificate and its key, in PEM.  To make one for a trial, in a file that only you can read:

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
        -keyout localhost.pem -out localhost.crt && cat localhost.crt >> localhost.pem

    python examples/tls_echo.py localhost.pem
    python examples/echo_client.py --certificate localhost.crt hello out there
"""

from __future__ import annotations

import argparse
import logging
import signal
import ssl

import gevent
from echo_server import Echo

import ngi_gevent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("certificate", help="file with a certificate and its key")
    options = parser.parse_args()

    # At this level, each failed handshake is logged with its reason.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.certificate)
    listener = ngi_gevent.listener(("127.0.0.1", options.port), Echo, ssl_context=context)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
