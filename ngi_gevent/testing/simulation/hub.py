"""The hub of a simulation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast

from gevent import Timeout
from gevent.exceptions import HubDestroyed
from gevent.hub import Hub

from ngi_gevent.testing.simulation.errors import NotSimulated
from ngi_gevent.testing.simulation.loop import VirtualLoop

__all__ = ["SimulatedHub"]


class SimulatedHub(Hub):
    """A hub on a virtual loop.

    :ivar raised: called with the exceptions of greenlets and callbacks, which other hubs print.
    """

    def __init__(self, loop: VirtualLoop, raised: Callable[[BaseException], None]) -> None:
        super().__init__(loop=cast(Any, loop))
        self.virtual_loop = loop
        self.raised = raised
        self.threadpool = cast(Any, NoThreads())
        self.resolver = cast(Any, NoResolver())

    def run(self) -> None:
        """Run the loop, and throw the reason into the test when it has ended."""
        loop = self.virtual_loop
        while True:
            loop.error_handler = self
            try:
                loop.run()
            except HubDestroyed:
                raise
            except BaseException as error:  # most likely Ctrl-C, between two callbacks
                ended: BaseException = error
            else:
                assert loop.ended is not None
                ended, loop.ended = loop.ended, None
            assert self.parent is not None
            self.parent.throw(ended)

    def handle_error(self, context: Any, type: Any, value: Any, tb: Any) -> None:
        """Add an exception to the simulation's list."""
        if isinstance(value, HubDestroyed):
            raise value
        if isinstance(value, self.NOT_ERROR):
            return
        if isinstance(value, (Exception, Timeout)) and not isinstance(value, self.SYSTEM_ERROR):
            self.raised(value)
        else:  # such as the exception that ends a test that exceeds its limit of real time
            self.handle_system_error(type, value, tb)


class NoThreads:
    """A replacement for gevent's thread pool."""

    @property
    def size(self) -> int:
        """Other native threads. All count as the pool's, because none of them can end a wait in the simulation."""
        return len(sys._current_frames()) - 1

    def kill(self) -> None:
        """Do nothing: the hub is destroyed."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotSimulated(f"gevent's thread pool was used ({name}); native threads do not follow the virtual time")


class NoResolver:
    """A replacement for gevent's resolver."""

    def close(self) -> None:
        """Do nothing: the hub is destroyed."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotSimulated(f"{name} was called; only connect and listener of a host look up names in a simulation")
