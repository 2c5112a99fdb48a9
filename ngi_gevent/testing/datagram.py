"""Listeners for datagrams in memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from ngi_gevent.datagram import BaseDatagramListener

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IUDPHandler
    from ngi_gevent.testing.implementation import Implementation
    from ngi_gevent.testing.turns import MemoryOutstanding

__all__ = ["DatagramListener"]


class DatagramListener(BaseDatagramListener):
    """A listener for datagrams in memory.  Made by ``udp_listener``.

    It is what :class:`ngi_gevent.interfaces.IUDPListener` says.
    """

    _owner: MemoryOutstanding

    def __init__(
        self,
        implementation: Implementation,
        owner: MemoryOutstanding,
        address: Hashable,
        handler: IUDPHandler,
        buffer_size: int,
    ) -> None:
        super().__init__(owner, handler, buffer_size)
        self.address = address
        self._implementation = implementation
        self._open = True

    def receive(self, sender: Hashable, data: bytes) -> None:
        """Take a datagram that is on its way, when it is its turn."""
        self._owner.turns.queue(lambda: self._turn(sender, data))
        self._owner.turns.run()

    def _turn(self, sender: Hashable, data: bytes) -> None:
        if self._open:
            self._owner.turns.current = self
            self._take(sender, len(data), data)

    def _stop_receiving(self) -> None:
        self._implementation.free_udp(self.address)
        self._owner.forget(self)
