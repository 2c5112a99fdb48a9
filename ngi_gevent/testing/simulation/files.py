"""The paths of Unix sockets, and abstract names, on one host."""

from __future__ import annotations

import errno
import os
import stat
from itertools import count
from typing import Any

__all__ = ["Files", "error"]

#: Bytes of the longest path, and of the longest abstract name, as on Linux.
MAX_PATH, MAX_NAME = 107, 108


def error(code: int) -> OSError:
    """Return the ``OSError`` with *number*."""
    return OSError(code, os.strerror(code))


class _File:
    """A file that a socket was bound to, whether the socket still exists or not."""

    __slots__ = ("group", "mode", "number", "socket", "user")

    def __init__(self, socket: Any, number: int) -> None:
        self.socket = socket
        self.number = number
        self.mode = stat.S_IFSOCK | 0o755
        self.user, self.group = os.getuid(), os.getgid()


class Files:
    """The paths of Unix sockets.  Every folder exists, and no other files do."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._abstract: dict[bytes, Any] = {}
        self._locked: set[str] = set()
        self._numbers = count(1)

    def bind(self, path: str | bytes, socket: Any) -> str | bytes:
        """Bind *socket* to *path*.  Return the path as ``getsockname`` does.

        :raises OSError: the path is in use, or too long.
        """
        name = os.fsencode(path)
        if len(name) > (MAX_NAME if name[:1] == b"\0" else MAX_PATH):
            raise OSError("AF_UNIX path too long")
        if name[:1] == b"\0":
            if name in self._abstract:
                raise error(errno.EADDRINUSE)
            self._abstract[name] = socket
            return name
        path = os.fsdecode(path)
        full = os.path.abspath(path)
        if full in self._files:
            raise error(errno.EADDRINUSE)
        self._files[full] = _File(socket, next(self._numbers))
        return path

    def find(self, path: str | bytes) -> Any:
        """Return the socket that is bound to *path*.

        :raises OSError: no socket is bound to *path*.
        """
        name = os.fsencode(path)
        socket = self._abstract.get(name) if name[:1] == b"\0" else self._file(path).socket
        if socket is None:
            raise error(errno.ECONNREFUSED)
        return socket

    def close(self, socket: Any) -> None:
        """Mark *socket* as closed.  Its file stays."""
        for file in self._files.values():
            if file.socket is socket:
                file.socket = None
        for name in [name for name, bound in self._abstract.items() if bound is socket]:
            del self._abstract[name]

    def stat(self, path: str | bytes) -> os.stat_result:
        """Return the status of a file, or raise ``OSError``."""
        file = self._file(path)
        return os.stat_result((file.mode, file.number, 1, 1, file.user, file.group, 0, 0, 0, 0))

    def unlink(self, path: str | bytes) -> None:
        """Remove a file, or raise ``OSError``."""
        self._file(path)
        del self._files[os.path.abspath(os.fsdecode(path))]

    def change(self, path: str | bytes, mode: int | None, owner: tuple[int, int] | None) -> None:
        """Change permissions and owner of a file, or raise ``OSError``."""
        file = self._file(path)
        if owner is not None:
            user, group = owner
            file.user, file.group = (file.user if user < 0 else user), (file.group if group < 0 else group)
        if mode is not None:
            file.mode = stat.S_IFSOCK | mode

    def lock(self, folder: str) -> str:
        """Lock a folder, or raise ``BlockingIOError``."""
        folder = os.path.abspath(folder)
        if folder in self._locked:
            raise error(errno.EAGAIN)
        self._locked.add(folder)
        return folder

    def unlock(self, folder: str) -> None:
        """Release a lock."""
        self._locked.discard(folder)

    def forget_sockets(self) -> None:
        """Mark all sockets as gone, since the host has crashed.  Files stay."""
        for file in self._files.values():
            file.socket = None
        self._abstract.clear()
        self._locked.clear()

    def _file(self, path: str | bytes) -> _File:
        try:
            return self._files[os.path.abspath(os.fsdecode(path))]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path)) from None
