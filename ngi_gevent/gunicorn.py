"""Workers for gunicorn, a process manager for servers.

::

    gunicorn -k ngi_gevent.gunicorn.Worker -w 4 -b 127.0.0.1:8000 package.module:Server

The application object is a server or a :class:`~ngi_gevent.Service`; ``package.module:make()`` calls a factory.  This
module needs gunicorn, which the extra ``serve`` installs.
"""

from __future__ import annotations

import inspect
import logging
import os
import queue
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent import monkey
from gevent.signal import signal as set_signal_handler
from gevent.socket import wait_read
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError
from gunicorn.instrument.statsd import Statsd
from gunicorn.sock import ssl_context
from gunicorn.systemd import SD_LISTEN_FDS_START
from gunicorn.workers import base

from ngi_gevent.core import clock, logs
from ngi_gevent.core.service import Service
from ngi_gevent.errors import Timeout
from ngi_gevent.sockets.implementation import Implementation

if TYPE_CHECKING:
    from types import FrameType

    from ngi_gevent.interfaces import IListener, IServer, IServerConnection, ListenOptions

__all__ = ["PatchedWorker", "Worker"]

#: Options of a listener, and the settings of gunicorn that take their place.
SETTINGS = {
    "backlog": "backlog",
    "max_connections": "worker_connections",
    "reuse_port": "reuse_port",
    "dual_stack": "bind",
    "mode": "umask",
    "owner": "user and group",
    "ssl_context": "certfile, and the hook ssl_context",
    "proxy_protocol": "proxy_protocol and proxy_allow_ips",
}

#: Seconds between two heartbeats, at most.
HEARTBEAT = 1.0

#: Seconds for the last output, when a worker ends its connections.
LAST_OUTPUT = 0.1


class Worker(base.Worker):
    """A worker process that serves connections, for the option ``-k`` of gunicorn.

    The worker imports the application and makes the listener before it counts as booted.  If that fails, the worker
    logs one line and exits, and gunicorn stops with exit code 3 or 4.

    :ivar listener: the listener on all addresses, set before the hook ``post_worker_init``; None while the application
        has a syntax error and ``reload`` is on.
    """

    listener: IListener | None = None

    @staticmethod
    def setup() -> None:
        """Check the sockets from systemd, in the master, before gunicorn uses them as stream sockets.

        :raises RuntimeError: one of them is not a stream socket, or their number is not an int.  gunicorn shows the
            message, and exits with code 1.
        """
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            count = os.environ.get("LISTEN_FDS", "0")
            if not (count.isascii() and count.isdecimal()):
                raise RuntimeError(f"LISTEN_FDS must be an int >= 0; got {count!r}")
            for descriptor in range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + int(count)):
                try:
                    with socket.socket(fileno=os.dup(descriptor)) as sock:
                        _check_kind(sock)
                except (ValueError, OSError) as error:
                    raise RuntimeError(f"LISTEN_FDS: descriptor {descriptor}: {error}") from None

    def init_process(self) -> None:
        gevent.reinit()  # A preloaded application can have made a hub in the master.
        self._implementation = Implementation()
        self._server: IServer | None = None
        super().init_process()

    def init_signals(self) -> None:
        """Handle signals, including an earlier one that ends the worker.

        Between the fork and this call, signals go to the copy of the master's queue, which the worker does not read.
        If one were lost, the master would wait for ``graceful_timeout``, and then kill this worker.
        """
        copy: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        super().init_signals()
        # gevent does not notice how gunicorn sets SIGCHLD.  gevent.subprocess would wait forever if a preloaded
        # application has used it in the master.
        set_signal_handler(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(AttributeError, queue.Empty):  # the queue is not an interface of gunicorn
            while copy.SIG_QUEUE.get_nowait() not in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                pass
            self.alive = False

    def load_wsgi(self) -> None:
        """Load the application, and listen.  gunicorn gives this method its name, and calls it before the boot ends."""
        try:
            application = self.app.wsgi()
        except AppImportError:
            raise  # gunicorn shows it in one line.
        except BaseException as error:
            # After a SystemExit, gunicorn would start another worker.
            if isinstance(error, SystemExit) and not self.alive:
                raise  # A signal handler has raised it.
            if isinstance(error, SyntaxError) and self.reloader is not None:
                self.log.exception("the application has a syntax error, and is loaded again once its file has changed")
                if error.filename is not None:
                    self.reloader.add_extra_file(error.filename)
                return
            self._end(Arbiter.APP_LOAD_ERROR, f"unable to load {self._name()}: {_with_place(error)}")
        self._forward_logs()
        try:
            check_application(application, self._name())
        except TypeError as error:
            self._end(Arbiter.APP_LOAD_ERROR, str(error))
        try:
            options = listen_options(self.cfg, application)
        except (TypeError, ValueError, OSError) as error:  # ssl.SSLError is an OSError
            files = {name: getattr(self.cfg, name) for name in ("certfile", "keyfile", "ca_certs")}
            named = ", ".join(f"{name} {file!r}" for name, file in files.items() if file)
            self._end(Arbiter.WORKER_BOOT_ERROR, f"unable to use {named}: {logs.format_reason(error)}")
        self._server = application
        try:
            sockets = [bound.sock for bound in self.sockets]
            for sock in sockets:
                _check_kind(sock)
            self.listener = self._implementation.listener(sockets, self._serve, **options)
        except (TypeError, ValueError, OSError) as error:
            self._end(Arbiter.WORKER_BOOT_ERROR, f"unable to listen: {logs.format_reason(error)}")
        self._set_log_level()  # Not before, because the master has already logged the addresses.

    def run(self) -> None:
        """Serve until a signal or a limit ends this worker.  Then connections have ``graceful_timeout`` to finish."""
        gevent.spawn(self._beat)
        try:
            while self.alive:
                wait_read(self.PIPE[0])
                with suppress(BlockingIOError):
                    os.read(self.PIPE[0], 4096)
            if self.listener is not None:
                ended = self.listener.close_wait(graceful_seconds(self.cfg.graceful_timeout))
                if ended:
                    self.log.warning("Worker graceful timeout (pid:%s), connections ended: %d", self.pid, ended)
        finally:
            self._implementation.close()
            with suppress(Timeout):
                self._implementation.wait(LAST_OUTPUT)

    def notify(self) -> None:
        """Notify the master that this worker is alive.  If the master is gone, end gracefully."""
        super().notify()
        if self.ppid != os.getppid() and self.alive:
            self.log.info("Parent changed, shutting down: %s", self)
            self._stop()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End without waiting for connections, even if a handler computes."""
        # gunicorn's method sleeps.  A patched time.sleep fails in a signal handler.
        self.alive = False
        self.cfg.worker_int(self)
        sys.exit(0)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """Open the log files again, on a greenlet, because a signal handler cannot wait for the locks of a log."""
        gevent.spawn(super().handle_usr1, sig, frame)

    def _beat(self) -> None:
        """Notify the master regularly, as long as the hub runs.

        A handler that waits does not stop this greenlet, but one that computes does.  gunicorn kills a worker that has
        not notified it for its ``timeout``.
        """
        pause = min(HEARTBEAT, self.timeout / 2) if self.timeout else HEARTBEAT  # Half of the setting.
        while True:
            self.notify()
            gevent.sleep(pause)

    def _stop(self) -> None:
        """End gracefully, soon."""
        self.alive = False
        with suppress(BlockingIOError):  # The pipe is full, so the main greenlet is about to wake up.
            os.write(self.PIPE[1], b".")

    def _serve(self, connection: IServerConnection) -> object:
        """Count the connection, and pass it to the application's server."""
        assert self._server is not None
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Worker restarts (pid:%s), connections served: %d (max_requests)", self.pid, self.nr)
            self._stop()
        if isinstance(self.log, Statsd):
            self._count_in_statsd(connection)
        return self._server(connection)

    def _count_in_statsd(self, connection: IServerConnection) -> None:
        """Count *connection* as a request, under the names of gunicorn's own counters."""
        began = clock.now()
        self.log.increment("gunicorn.requests", 1)
        connection.when_closed(
            lambda *_: self.log.timer("gunicorn.request.duration", round(1000 * (clock.now() - began), 3))
        )

    def _forward_logs(self) -> None:
        """Write this package's log to gunicorn's, unless ``logconfig`` or the application has set it up."""
        logger = logging.getLogger("ngi_gevent")
        if not logger.hasHandlers():
            logger.addHandler(_ToGunicorn(self.log))

    def _set_log_level(self) -> None:
        """Use the setting ``loglevel`` for the forwarded log, unless the application has set its level."""
        logger = logging.getLogger("ngi_gevent")
        if logger.level == logging.NOTSET and any(isinstance(handler, _ToGunicorn) for handler in logger.handlers):
            logger.setLevel(logging.getLogger("gunicorn.error").getEffectiveLevel())

    def _name(self) -> str:
        return str(getattr(self.app, "app_uri", None) or "the application")

    def _end(self, code: int, line: str) -> NoReturn:
        """Log *line*, and exit with *code*, which makes gunicorn stop instead of starting another worker."""
        self.log.error("%s", line)
        if sys.exc_info()[0]:
            self.log.debug("the exception behind it:", exc_info=True)
        sys.exit(code)


class PatchedWorker(Worker):
    """A worker that monkey-patches the standard library before it imports the application.

    With ``preload_app``, the master imports the application.  Then patch at the top of ``gunicorn.conf.py``.
    """

    def init_process(self) -> None:
        if self.cfg.preload_app and not monkey.is_module_patched("socket"):
            self._end(
                Arbiter.WORKER_BOOT_ERROR,
                "with preload_app, the application is imported before a worker can patch; "
                "call gevent.monkey.patch_all() at the top of gunicorn.conf.py",
            )
        monkey.patch_all()
        super().init_process()


def check_application(application: Any, name: str) -> None:
    """Check that *application* can be called with a connection.

    :param name: the application's name on the command line.
    :raises TypeError: *application* cannot be called, or is a ``Service`` with an option that is a setting of gunicorn.
    """
    is_service = isinstance(application, Service)
    if is_service:
        for option in application.options:
            if option in SETTINGS:
                raise TypeError(f"{option} cannot be set by the Service {name}; use gunicorn's {SETTINGS[option]}")
        application = application.server  # The service itself takes everything.
    try:
        signature = inspect.signature(application)
    except (TypeError, ValueError):  # It is written in C.
        return
    try:
        signature.bind(object())
    except TypeError:
        is_factory = not (signature.parameters or is_service or "(" in name)
        factory = f"; for a factory, write '{name}()'" if is_factory else ""
        raise TypeError(
            f"{name} must be a callable that takes a connection; got {application!r:.100}{factory}"
        ) from None


def listen_options(cfg: Any, application: Any) -> ListenOptions:
    """Return the listener's options, from gunicorn's settings *cfg* and from *application* if it is a ``Service``.

    :raises OSError: a file of the certificates cannot be read, or they do not match.
    :raises TypeError: the hook ``ssl_context`` does not return a context.  The listener would take None for no TLS.
    """
    options: ListenOptions = {"backlog": cfg.backlog, "max_connections": cfg.worker_connections or None}
    if isinstance(application, Service):
        options.update(application.options)
    if cfg.is_ssl:
        options["ssl_context"] = context = ssl_context(cfg)
        if context is None:
            raise TypeError("the hook ssl_context must return an SSLContext; got None")
    if cfg.proxy_protocol != "off":
        options["proxy_protocol"] = trusted_networks(cfg.proxy_allow_ips)
    return options


def trusted_networks(allowed: Sequence[object]) -> list[str]:
    """Return the option ``proxy_protocol`` for *allowed*, gunicorn's setting ``proxy_allow_ips``.

    It always contains ``'unix'``, because gunicorn trusts all peers that can connect to its Unix sockets.
    """
    networks = [str(each) for each in allowed if each != "*"]  # In gunicorn 24, they are ip_network objects.
    return [*networks, *(["0.0.0.0/0", "::/0"] if "*" in allowed else []), "unix"]


def graceful_seconds(graceful_timeout: float) -> float:
    """Return the seconds that connections have to finish: less than *graceful_timeout*.

    After *graceful_timeout*, the master kills the worker.  Until then, the worker must have ended its connections.
    """
    return graceful_timeout - min(1.0, graceful_timeout / 4)


def _check_kind(sock: socket.socket) -> None:
    """Raise ``ValueError`` unless *sock* is a stream socket to listen on.  gunicorn does not check this."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        raise ValueError(f"gunicorn must bind stream sockets; got one on {sock.getsockname()!r}")
    with suppress(OSError):  # It is not connected.
        peer = sock.getpeername()
        raise ValueError(f"a socket to listen on must not be connected; got one to {peer!r}; remove Accept=yes")


def _with_place(error: BaseException) -> str:
    """Return *error* as text, with the place at which it was raised."""
    text = logs.format_reason(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    # The text of a SyntaxError contains its place.  If there is no such module, importlib has raised the error.
    if isinstance(error, SyntaxError) or last.filename.startswith("<"):
        return text
    return f"{text} ({last.filename}, line {last.lineno})"


class _ToGunicorn(logging.Handler):
    """A handler that writes to gunicorn's log, by the methods whose calls gunicorn counts for statsd."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        write = getattr(self._log, record.levelname.lower(), self._log.info)
        write("%s", self.format(record))
