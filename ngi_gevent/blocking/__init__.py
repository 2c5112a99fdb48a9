"""Blocking calls: make a request, connect, and use connections as binary files.

Each call blocks the calling greenlet, and other greenlets run in the meantime.  In a thread without a gevent hub, it
blocks the thread.
"""

from ngi_gevent.blocking.client import AnyAddress as AnyAddress
from ngi_gevent.blocking.client import connect, open, request
from ngi_gevent.blocking.input import Input
from ngi_gevent.blocking.output import Output
from ngi_gevent.blocking.servers import server

__all__ = ["Input", "Output", "connect", "open", "request", "server"]
