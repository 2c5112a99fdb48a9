"""Adapters: connections on top of other connections, which change input and output on the way."""

from ngi_gevent.adapters.base import Base, bottom
from ngi_gevent.adapters.delimited import MAX_LINE, Delimited, Lines
from ngi_gevent.adapters.length_prefixed import MAX_SIZE, LengthPrefixed, Sized
from ngi_gevent.adapters.sans_io import SansIO
from ngi_gevent.adapters.text import Text

__all__ = [
    "MAX_LINE",
    "MAX_SIZE",
    "Base",
    "Delimited",
    "LengthPrefixed",
    "Lines",
    "SansIO",
    "Sized",
    "Text",
    "bottom",
]
