"""Implementations on gevent: which hub connections live on, what is outstanding there, and who learns of errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gevent import get_hub
from gevent.event import Event

from ngi_gevent.address import check_connect_address, check_listen_address
from ngi_gevent.connection import OUTPUT_LIMIT, check_count, check_timeout
from ngi_gevent.connector import Connector
from ngi_gevent.dispatcher import current_connection
from ngi_gevent.errors import Deadlock, ImplementationClosed, Timeout
from ngi_gevent.listening import check_client_handler, check_server
from ngi_gevent.outstanding import Outstanding
from ngi_gevent.stream_listener import BACKLOG, StreamListener

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer

__all__ = ["Implementation", "connect", "default", "listener", "wait"]


class Implementation:
    """Connects and listens on the hub of the calling thread.

    Greenlets of that thread serve the connections whenever it waits on gevent: in ``wait()``, in ``gevent.sleep``, or
    in anything that is monkey-patched.  Nothing keeps a program running by itself.  What handlers raise is logged, by
    the logger ``ngi_gevent.connection``.
    """

    def __init__(self) -> None:
        self._closed = False
        # A hub that is given up must not be kept by us; what is outstanding on it keeps it.
        self._on_hub: WeakKeyDictionary[Any, _OutstandingOnHub] = WeakKeyDictionary()

    def connect(self, address: Any, handler: IClientConnectHandler) -> None:
        """Start to connect to *address* and return: *handler* is told what came of it.

        *address* is ``(host, port)`` or the name of a Unix socket.  Raises ``TypeError`` or ``ValueError`` for what can
        be no address or handler; all else is told to ``failed_connect``, on a greenlet of this connect's own.
        """
        check_connect_address(address)
        check_client_handler(handler)
        hub, outstanding = self._outstanding()
        outstanding.add(Connector(outstanding, hub, address, handler))

    def listener(
        self,
        address: Any,
        handler: IServer,
        *,
        backlog: int = BACKLOG,
        output_limit: int = OUTPUT_LIMIT,
        reuse_port: bool = False,
        keep_alive: bool = True,
    ) -> StreamListener:
        """Listen on *address*, give every connection to *handler*, a server, and return at once.

        *address* is ``(host, port)``, where port 0 picks one; the name of a Unix socket; None for a free port on the
        loopback interface; or a bound socket, which then belongs to the listener.  Raises ``TypeError`` or
        ``ValueError`` for what can be no address or option, and ``OSError``, naming the address, where the system
        refuses it; nothing is left behind then.

        :param backlog: connections that the kernel keeps until they are accepted.
        :param output_limit: bytes of output that may wait for one peer; one more write ends its connection, with
            :class:`~ngi_gevent.LimitExceeded` as the reason.
        :param reuse_port: whether other processes may listen on the same port, the kernel sharing out connections.
        :param keep_alive: whether the kernel looks, now and then, whether a silent peer is still there.
        """
        check_listen_address(address)
        check_server(handler)
        check_count("backlog", backlog)
        check_count("output_limit", output_limit)
        outstanding = self._outstanding()[1]
        listener = StreamListener(
            outstanding,
            self.connect,
            address,
            handler,
            backlog=backlog,
            output_limit=output_limit,
            reuse_port=reuse_port,
            keep_alive=keep_alive,
        )
        if self._closed:  # while a name was looked up
            listener.close()
            self._check_open()
        outstanding.add(listener)
        return listener

    def wait(self, timeout: float | None = None) -> None:
        """Serve until nothing is outstanding on this thread's hub: no connect, no open connection, no listener.

        Raises :class:`~ngi_gevent.Timeout` if that takes more than *timeout* seconds, and
        :class:`~ngi_gevent.Deadlock` in a callback of a connection that it would wait for.
        """
        check_timeout(timeout)
        outstanding = self._outstanding()[1]
        if outstanding.includes(current_connection()):
            raise Deadlock("wait was called in a callback of one of the connections that it would wait for")
        if not outstanding.wait(timeout):
            raise Timeout(f"still outstanding after {timeout} seconds: {outstanding}")

    def close(self) -> None:
        """Close all listeners, end all connections, and give up all connects, never blocking; twice is harmless.

        Whatever is asked for afterwards raises :class:`~ngi_gevent.ImplementationClosed`.
        """
        self._closed = True
        for outstanding in list(self._on_hub.values()):
            outstanding.stop()

    def _check_open(self) -> None:
        if self._closed:
            raise ImplementationClosed("this implementation was closed")

    def _outstanding(self) -> tuple[Any, _OutstandingOnHub]:
        self._check_open()
        hub = get_hub()
        outstanding = self._on_hub.get(hub)
        if outstanding is None:
            outstanding = self._on_hub[hub] = _OutstandingOnHub()
        return hub, outstanding


class _OutstandingOnHub(Outstanding):
    """What is outstanding on one hub."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is outstanding, or for *timeout* seconds; whether nothing is."""
        deadline = None if timeout is None else time.monotonic() + timeout
        empty = Event()
        self._when_empty.append(empty.set)
        while self and empty.wait(None if deadline is None else max(0, deadline - time.monotonic())):
            empty.clear()
        self._when_empty.remove(empty.set)
        return not self

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        super().handler_raised(peer, where, error)
        hub = get_hub()
        if isinstance(error, hub.SYSTEM_ERROR):
            # Somebody wants the program to end: that is for the main greenlet, as everywhere in gevent.
            hub.handle_system_error(type(error), error, error.__traceback__)


#: The implementation behind ``ngi_gevent.connect`` and its fellows.
default = Implementation()
connect = default.connect
listener = default.listener
wait = default.wait
