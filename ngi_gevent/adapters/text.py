"""Text, encoded as bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import Base, Converted, Records

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection

__all__ = ["Text"]


class Text(Base):
    """An adapter that delivers and takes ``str``.

    It can be the file of ``print(..., file=connection)`` and ``traceback.print_exc(file=connection)``.  Characters that
    TCP has cut are joined again.  Over an adapter of records, each record is decoded separately.  Input that cannot be
    decoded ends the connection, with the ``UnicodeDecodeError`` as the reason.  When the connection ends, an incomplete
    character is not delivered.

    :param connection: the connection below.
    :param encoding: UTF-8 by default.  An encoding that begins with a mark of its byte order does not work, since each
        write would have one: use ``"utf-16-le"``, for example.
    :param errors: what to do about characters or bytes that the encoding does not have, as ``str.encode`` has it;
        ``"strict"`` by default.
    :raises TypeError: *encoding* or *errors* is not a str.
    :raises LookupError: *encoding* or *errors* is unknown.
    :raises ValueError: *encoding* begins with a mark of its byte order.
    """

    def __init__(self, connection: IConnection, encoding: str = "utf-8", errors: str = "strict") -> None:
        super().__init__(connection)
        for name, value in ("encoding", encoding), ("errors", errors):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str; got {value!r:.100}")
        codecs.lookup_error(errors)
        if "".encode(encoding):
            raise ValueError(f"encoding must have no byte order mark; got {encoding!r}; use one like utf-16-le")
        self._encoding = encoding
        self._errors = errors
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._is_over_records = False
        below: Any = connection
        while isinstance(below, Base):
            self._is_over_records |= isinstance(below, Records)
            below = below.connection

    def write(self, data: str) -> None:  # type: ignore[override]
        """Send *data*.  Never blocks.

        :raises TypeError: *data* is not a str.
        :raises UnicodeEncodeError: *data* has a character that the encoding does not have.
        :raises ConnectionClosed: the connection is closing or closed.
        """
        self.connection.write(self._encoded(data))

    def writelines(self, data: Iterable[str]) -> None:  # type: ignore[override]
        """Send each str that *data* yields, as ``writelines`` of a connection does."""
        self.connection.writelines(Converted(data, self._encoded))

    def flush(self) -> None:
        """Do nothing, since all output is sent soon.  ``print(..., flush=True)`` calls this."""

    def _encoded(self, data: Any) -> bytes:
        if not isinstance(data, str):
            raise TypeError(f"data must be a str for Text; got {data!r:.100}")
        return data.encode(self._encoding, self._errors)

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the text that *data* completes."""
        try:
            text = self._decoder.decode(data, self._is_over_records)
        except UnicodeDecodeError as error:
            self.fail(error)
            return
        if text or self._is_over_records:
            super().handle_input(connection, text)  # type: ignore[arg-type]

    def take_undelivered(self) -> bytes:
        begun = self._decoder.getstate()[0]
        self._decoder.reset()
        return super().take_undelivered() + begun

    def detach(self) -> tuple[Any, bytes]:
        connection, rest = super().detach()
        return connection, self._decoder.getstate()[0] + rest
