"""The implementation for scripts, whose ``wait`` raises the exception of a handler."""

from __future__ import annotations

from ngi_gevent.sockets.hub_registry import keep_first_error
from ngi_gevent.sockets.implementation import Implementation

__all__ = ["Inline"]


class Inline(Implementation):
    """Connects and listens on the hub of the calling thread, for scripts: ``wait`` raises the error of a handler.

    Otherwise like :class:`Implementation`.  The first error since the last ``wait`` is kept for the next one, and not
    logged.  Further errors are logged, and so is one that no ``wait`` came for before ``close``.  ``wait`` returns as
    soon as there is an error, and leaves everything else as it is.  Ctrl-C in a handler is raised by a ``wait`` that
    runs, and otherwise in the main greenlet.
    """

    _on_error = staticmethod(keep_first_error)
