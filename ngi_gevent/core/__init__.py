"""Parts that all implementations share, on sockets and in memory.  No socket is used here."""

__all__: list[str] = []
