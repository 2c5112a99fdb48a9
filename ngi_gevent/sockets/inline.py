"""The implementation for scripts, whose ``wait`` raises the exception of a handler."""

from __future__ import annotations

from ngi_gevent.sockets.hub_registry import keep_first_error
from ngi_gevent.sockets.implementation import Implementation

__all__ = ["Inline"]


class Inline(Implementation):
    """An implementation for scripts, on the hub of the calling thread, whose ``wait`` raises exceptions of handlers.

    Otherwise like :class:`Implementation`.  ``wait`` raises the first exception since the last ``wait``, as soon as
    there is one, and leaves everything else as it is.  This exception is not logged.  Further exceptions are logged.
    An exception is also logged if ``close`` is called before ``wait``.  If Ctrl-C is raised in a handler while ``wait``
    runs, ``wait`` raises it; otherwise, the main greenlet does.
    """

    _on_error = staticmethod(keep_first_error)
