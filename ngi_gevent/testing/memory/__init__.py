"""The implementation in memory: synchronous, without sockets."""

__all__: list[str] = []
