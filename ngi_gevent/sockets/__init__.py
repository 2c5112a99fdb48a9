"""The implementation on gevent sockets."""

__all__: list[str] = []
