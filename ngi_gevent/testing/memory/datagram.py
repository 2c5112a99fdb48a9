"""UDP listeners in memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.datagram import BaseDatagramListener

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IUDPHandler
    from ngi_gevent.testing.memory.turns import MemoryRegistry

__all__ = ["DatagramListener", "check_hashable", "check_send_address", "deliver"]


def check_hashable(address: object) -> None:
    """Raise ``TypeError`` unless *address* can be an address in memory."""
    try:
        hash(address)
    except TypeError:
        raise TypeError(f"an address in memory must be hashable; got {address!r:.100}") from None


def check_send_address(address: object) -> None:
    """Raise ``TypeError`` unless a datagram can be sent to *address*."""
    if address is None:
        raise TypeError("the address of a datagram must not be None; None is only for listening")
    check_hashable(address)


def deliver(listeners: Mapping[Hashable, DatagramListener], sender: Hashable, address: Hashable, data: bytes) -> None:
    """Pass *data* from *sender* to the listener on *address*.  If there is no listener, drop it."""
    listener = listeners.get(address)
    if listener is not None:
        listener.receive(sender, data)


class DatagramListener(BaseDatagramListener):
    """A UDP listener in memory.  Made by ``udp_listener``.

    See :class:`ngi_gevent.interfaces.IUDPListener`.
    """

    _owner: MemoryRegistry

    def __init__(
        self,
        listeners: dict[Hashable, DatagramListener],
        owner: MemoryRegistry,
        address: Hashable,
        handler: IUDPHandler,
        buffer_size: int,
    ) -> None:
        super().__init__(owner, handler, buffer_size)
        self.address = address
        self._listeners = listeners  # the listeners of its implementation, by address
        self._open = True

    def receive(self, sender: Hashable, data: bytes) -> None:
        """Pass a datagram to the handler in its turn."""
        self._owner.turns.queue(lambda: self._handle(sender, data))
        self._owner.turns.run()

    def _handle(self, sender: Hashable, data: bytes) -> None:
        if self._open:
            self._owner.turns.current = self
            self._take(sender, len(data), data)

    def _check_send_address(self, address: Any) -> None:
        check_send_address(address)

    def _send(self, address: Hashable, data: bytes) -> None:
        deliver(self._listeners, self.address, address, data)

    def _stop_receiving(self) -> None:
        del self._listeners[self.address]
        self._owner.forget(self)
