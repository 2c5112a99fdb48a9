"""Workers for gunicorn, which starts, watches and stops the processes of a server.

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

#: The options of a listener that belong to gunicorn's settings, and the settings.
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

#: Seconds that connections have, at the end of a worker, to get the rest of their output.
LAST_OUTPUT = 0.1


class Worker(base.Worker):
    """A worker process that serves connections, for the option ``-k`` of gunicorn.

    The application is imported, and the listener made, before the worker counts as booted.  If that fails, the worker
    logs one line and exits, and gunicorn stops with exit code 3 or 4.

    :ivar listener: the listener on all addresses, from the hook ``post_worker_init`` on; None while the application has
        a syntax error and ``reload`` is on.
    """

    listener: IListener | None = None

    @staticmethod
    def setup() -> None:
        """Check the sockets that systemd has passed, in the master, before it takes them for stream sockets.

        :raises RuntimeError: one of them is not, or their number is not an int; gunicorn shows the message, and exits
            with code 1.
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
        gevent.reinit()  # the hub of the master, which has one if it has imported an application that uses gevent
        self._implementation = Implementation()
        self._server: IServer | None = None
        super().init_process()

    def init_signals(self) -> None:
        """Handle signals from here on, and one to end that came before.

        The fork has copied the master's handler, and its queue, which nothing reads here.  The master would wait for
        ``graceful_timeout``, and then kill this worker.
        """
        copy: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        super().init_signals()
        # gunicorn has set it in a way that gevent does not notice, so that gevent.subprocess would wait forever if the
        # master has used it, for an application that is preloaded.
        set_signal_handler(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(AttributeError, queue.Empty):  # the queue is not an interface of gunicorn
            while copy.SIG_QUEUE.get_nowait() not in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                pass
            self.alive = False

    def load_wsgi(self) -> None:
        """Load the application, and listen.  The name is gunicorn's, which calls this before the worker has booted."""
        try:
            application = self.app.wsgi()
        except AppImportError:
            raise  # gunicorn shows it in one line
        except BaseException as error:
            # Also SystemExit: after that, gunicorn would start another worker.
            if isinstance(error, SystemExit) and not self.alive:
                raise  # a signal has called it
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
        self._set_log_level()  # only now, since the master has logged where it listens

    def run(self) -> None:
        """Serve until a signal or a limit ends this worker, and then give connections time to finish."""
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
        """Tell the master that this worker is alive, and end if there is no master."""
        super().notify()
        if self.ppid != os.getppid() and self.alive:
            self.log.info("Parent changed, shutting down: %s", self)
            self._stop()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End without waiting for connections, also if a handler computes."""
        # gunicorn's method sleeps, which a patched time.sleep cannot do in a signal handler.
        self.alive = False
        self.cfg.worker_int(self)
        sys.exit(0)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """Open the log files again, on a greenlet, since a signal handler cannot wait for the locks of a log."""
        gevent.spawn(super().handle_usr1, sig, frame)

    def _beat(self) -> None:
        """Notify the master, on the hub: so a handler that waits does not matter, and one that computes forever does.

        gunicorn kills a worker that has not notified it for its ``timeout``.
        """
        pause = min(HEARTBEAT, self.timeout / 2) if self.timeout else HEARTBEAT  # timeout is half of the setting
        while True:
            self.notify()
            gevent.sleep(pause)

    def _stop(self) -> None:
        """End gracefully, soon."""
        self.alive = False
        with suppress(BlockingIOError):  # it is full, so the main greenlet has been woken
            os.write(self.PIPE[1], b".")

    def _serve(self, connection: IServerConnection) -> object:
        """The server of the listener: counts connections, and calls the application's server."""
        assert self._server is not None
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Worker restarts (pid:%s), connections served: %d (max_requests)", self.pid, self.nr)
            self._stop()
        if isinstance(self.log, Statsd):
            self._count_in_statsd(connection)
        return self._server(connection)

    def _count_in_statsd(self, connection: IServerConnection) -> None:
        """Count *connection* as what gunicorn calls a request, by the names of gunicorn's own counters."""
        began = clock.now()
        self.log.increment("gunicorn.requests", 1)
        connection.when_closed(
            lambda *_: self.log.timer("gunicorn.request.duration", round(1000 * (clock.now() - began), 3))
        )

    def _forward_logs(self) -> None:
        """Write the log of this package to gunicorn's, if neither ``logconfig`` nor the application has set it up."""
        logger = logging.getLogger("ngi_gevent")
        if not logger.hasHandlers():
            logger.addHandler(_ToGunicorn(self.log))

    def _set_log_level(self) -> None:
        """Use the setting ``loglevel`` for the log that is written to gunicorn's, unless the application has set it."""
        logger = logging.getLogger("ngi_gevent")
        if logger.level == logging.NOTSET and any(isinstance(handler, _ToGunicorn) for handler in logger.handlers):
            logger.setLevel(logging.getLogger("gunicorn.error").getEffectiveLevel())

    def _name(self) -> str:
        return str(getattr(self.app, "app_uri", None) or "the application")

    def _end(self, code: int, line: str) -> NoReturn:
        """Log *line*, and exit.  *code* is one of those for which gunicorn stops, and does not start another worker."""
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
    """Raise ``TypeError`` unless *application*, which gunicorn calls *name*, can be called with a connection.

    The same for a ``Service`` with an option that belongs to one of gunicorn's settings.
    """
    if isinstance(application, Service):
        for option in application.options:
            if option in SETTINGS:
                raise TypeError(f"{option} cannot be set by the Service {name}; use gunicorn's {SETTINGS[option]}")
    try:
        signature = inspect.signature(application)
    except (TypeError, ValueError):  # it is written in C
        return
    try:
        signature.bind(object())
    except TypeError:
        factory = "" if signature.parameters or "(" in name else f"; for a factory, write '{name}()'"
        raise TypeError(
            f"{name} must be a callable that takes a connection; got {application!r:.100}{factory}"
        ) from None


def listen_options(cfg: Any, application: Any) -> ListenOptions:
    """Return the options of the listener, from gunicorn's settings *cfg* and a ``Service``.

    :raises OSError: a file of the certificates cannot be read, or they do not match.
    """
    options: ListenOptions = {"backlog": cfg.backlog, "max_connections": cfg.worker_connections or None}
    if isinstance(application, Service):
        options.update(application.options)
    if cfg.is_ssl:
        options["ssl_context"] = ssl_context(cfg)
    if cfg.proxy_protocol != "off":
        options["proxy_protocol"] = trusted_networks(cfg.proxy_allow_ips)
    return options


def trusted_networks(allowed: Sequence[object]) -> list[str]:
    """Return gunicorn's setting ``proxy_allow_ips`` as the option ``proxy_protocol``, which always has ``'unix'``.

    In gunicorn, the permissions of a Unix socket decide which peers are trusted.
    """
    networks = [str(each) for each in allowed if each != "*"]  # in gunicorn 24, they are ip_network objects
    return [*networks, *(["0.0.0.0/0", "::/0"] if "*" in allowed else []), "unix"]


def graceful_seconds(graceful_timeout: float) -> float:
    """Return the seconds that connections have to finish.

    After ``graceful_timeout``, the master kills the worker, which ends the connections that are left before that.
    """
    return graceful_timeout - min(1.0, graceful_timeout / 4)


def _check_kind(sock: socket.socket) -> None:
    """Raise ``ValueError`` unless *sock* is a stream socket.  gunicorn takes each socket that it is passed for one."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        raise ValueError(f"gunicorn must bind stream sockets; got one on {sock.getsockname()!r}")


def _with_place(error: BaseException) -> str:
    """Return *error* as text, with the line that has raised it."""
    text = logs.format_reason(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    # The text of a SyntaxError has its own place, and importlib is the place if there is no such module.
    if isinstance(error, SyntaxError) or last.filename.startswith("<"):
        return text
    return f"{text} ({last.filename}, line {last.lineno})"


class _ToGunicorn(logging.Handler):
    """Writes log entries to gunicorn's log, by the methods that its counters for statsd count."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        write = getattr(self._log, record.levelname.lower(), self._log.info)
        write("%s", self.format(record))
