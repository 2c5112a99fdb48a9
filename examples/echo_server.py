"""The example of NGI: a server that sends back its input in upper case."""

from __future__ import annotations

import argparse
import functools
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import gevent

import ngi_gevent
from ngi_gevent import adapters, signals, systemd
from ngi_gevent.interfaces import IListener, IServerConnection

DESCRIPTION = """\
Send back all input, in upper case.

When the server listens, it prints the address on standard output.  Try it from another terminal:

    echo hello out there | nc -N 127.0.0.1 8000

On SIGTERM or SIGINT (Ctrl-C), the server stops accepting.  Its clients have --close-timeout to finish.  Then the server
ends the other connections, prints their number, and exits with 0.  A second signal ends the process at once, even if a
handler never yields.  With --certificate, SIGHUP loads that file again.

Under systemd, the server notifies it when it is ready, reloads or stops, and sends the watchdog's messages.
"""


class Echo:
    """A server.  Each connection has one object, which is the connection's handler, too."""

    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        connection.write(data.upper())


#: For gunicorn, which makes the listener: gunicorn -k ngi_gevent.gunicorn.Worker echo_server:service
service = ngi_gevent.Service(Echo, idle_timeout=300)


class Health:
    """A server that answers HTTP with 200 as long as the hub runs. /ready is answered with 503 once the server is
    stopping.
    """

    def __init__(self, is_stopping: Callable[[], bool], connection: IServerConnection) -> None:
        self.is_stopping = is_stopping
        self.status = b"200 OK"
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection: adapters.Lines, line: bytes) -> None:
        if line.startswith(b"GET /ready ") and self.is_stopping():
            self.status = b"503 Service Unavailable"
        elif line in (b"\r", b""):  # the end of the request
            connection.write(b"HTTP/1.0 %s\r\n\r\n" % self.status)
            connection.close()


def bind_address(text: str) -> tuple[str, int] | str:
    """Parse HOST:PORT, with an IPv6 host in brackets, or the path of a Unix socket, which has a slash in it."""
    if "/" in text:
        return text
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"an IPv6 address must be in brackets, as in [::1]:8000; got {text!r}")
    if not (colon and host and port.isascii() and port.isdecimal()):
        raise argparse.ArgumentTypeError(f"an address must be HOST:PORT, or a path with a slash; got {text!r}")
    if int(port) > 65535:
        raise argparse.ArgumentTypeError(f"a port must be from 0 to 65535; got {text!r}")
    return host, int(port)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"seconds must be a number >= 0; got {text!r}")
    return value


def count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"connections must be an int >= 1; got {text!r}")
    return int(text)


def shown(address: object) -> str:
    """Format the address of a listener in the syntax of --bind."""
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_context(certificate: str) -> ssl.SSLContext:
    """Make a context with the certificate and the key in the file."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, password="")  # without a password function, OpenSSL would ask on the terminal
    return context


def renew(context: ssl.SSLContext, certificate: str) -> None:
    """Load the certificate that is in the file now, for all later handshakes of *context*, if it is valid."""
    with systemd.reloading():
        try:
            renewed = server_context(certificate)
        except OSError as error:
            print(f"{sys.argv[0]}: --certificate {certificate}: {error}; the one before is still used", file=sys.stderr)
        else:
            # The certificate is loaded into a new context, because a failed load would change the existing one.
            context.sni_callback = lambda connection, *_: setattr(connection, "context", renewed)
            print(f"loaded {certificate}", flush=True)


def handed_over(name: str) -> list[socket.socket]:
    """Return the sockets from systemd that have this name, or all if the name is empty.

    :raises ValueError: there are no such sockets.
    """
    sockets = systemd.sockets()
    found = sockets.get(name, []) if name else [sock for named in sockets.values() for sock in named]
    if not found:
        raise ValueError(f"systemd passed no such socket; the names are {sorted(sockets)}")
    return found


def refuse(option: str, error: Exception) -> NoReturn:
    print(f"{sys.argv[0]}: {option}: {error}", file=sys.stderr)
    sys.exit(2)


def listen(option: str, address: Any, server: Any, **options: Any) -> IListener:
    """Listen, or end the program."""
    try:
        return ngi_gevent.listener(address, server, **options)
    except ValueError as error:
        refuse(option, error)
    except OSError:
        sys.exit(1)  # the log has the reason


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    result = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = result.add_mutually_exclusive_group()
    where.add_argument(
        "--bind",
        metavar="ADDRESS",
        type=bind_address,
        default=("127.0.0.1", 8000),
        help="the address to listen on: HOST:PORT, where port 0 picks a free one, or the path of a Unix socket "
        "(default: 127.0.0.1:8000)",
    )
    where.add_argument(
        "--systemd",
        metavar="NAME",
        nargs="?",
        const="",
        help="listen on the sockets that systemd passes: the ones with this name, or all",
    )
    result.add_argument(
        "--health",
        metavar="ADDRESS",
        type=bind_address,
        help="the address for health checks by HTTP: /alive, and /ready until the server stops (default: none)",
    )
    result.add_argument(
        "--close-timeout",
        metavar="SECONDS",
        type=seconds,
        default=10.0,
        help="seconds that clients have to finish when the server stops (default: 10)",
    )
    result.add_argument(
        "--max-connections",
        metavar="NUMBER",
        type=count,
        help="open connections at which the server stops accepting; further clients wait "
        "(default: 90%% of the descriptors that the process can open)",
    )
    result.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=seconds,
        default=0,
        help="seconds without data before a connection is closed; 0 for no limit (default: 0)",
    )
    result.add_argument(
        "--certificate",
        metavar="FILE",
        help="the file with the certificate and the key for TLS, in PEM; SIGHUP loads it again (default: no TLS)",
    )
    result.add_argument("--verbose", action="store_true", help="log each connection, on standard error")
    return result


def main() -> int:
    options = parser().parse_args()
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.DEBUG if options.verbose else logging.WARNING,
    )
    stop = signals.catch_stop()

    context = None
    if options.certificate:
        try:
            context = server_context(options.certificate)
        except OSError as error:  # an error of the kernel, or of OpenSSL
            refuse(f"--certificate {options.certificate}", error)
        gevent.signal_handler(signal.SIGHUP, renew, context, options.certificate)

    option, address = f"--bind {shown(options.bind)}", options.bind
    if options.systemd is not None:
        option = f"--systemd {options.systemd}".strip()
        try:
            address = handed_over(options.systemd)
        except ValueError as error:
            refuse(option, error)
    listener = listen(
        option,
        address,
        Echo,
        max_connections=options.max_connections,
        idle_timeout=options.idle_timeout or None,
        ssl_context=context,
    )
    print("listening on", *map(shown, listener.addresses), flush=True)
    if options.health is not None:
        # A separate listener for health checks answers even if the other listener is full.
        server = functools.partial(Health, stop.is_set)
        health = listen(f"--health {shown(options.health)}", options.health, server, max_connections=10, idle_timeout=5)
        print("health checks on", shown(health.address), flush=True)
    systemd.notify("READY=1")
    systemd.watchdog()

    stop.wait()
    systemd.notify("STOPPING=1")
    ended = listener.close_wait(options.close_timeout)
    print(f"stopped, ending {ended} {'connection' if ended == 1 else 'connections'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
