"""An implementation around another one that passes its connections through an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ngi_gevent.testing.faults.wrapping import WrappingConnection, WrappingImplementation, WrappingListener

__all__ = ["Adapted"]


class Adapted(WrappingImplementation):
    """The implementation around *implementation* whose connections are made by ``adapter(connection)``."""

    def __init__(self, implementation: Any, adapter: Callable[[Any], Any]) -> None:
        super().__init__(implementation)
        self._adapter = adapter

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        return super().wrap(self._adapter(connection), control)
