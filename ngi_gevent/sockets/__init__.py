"""The implementation on sockets, with gevent."""

__all__: list[str] = []
