"""An implementation around another one, whose network fails as planned."""

__all__: list[str] = []
