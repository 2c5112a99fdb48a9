"""Checks of arguments: each raises at the call, and names the value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CoroutineType, GeneratorType
from typing import Any

__all__ = [
    "as_bytes",
    "as_delay",
    "as_iterator",
    "as_positive_timeout",
    "as_timeout",
    "check_client_handler",
    "check_count",
    "check_file_options",
    "check_flag",
    "check_handler",
    "check_max_connections",
    "check_reason",
    "check_returned",
    "check_server",
    "close_iterator",
    "connect_delay_of",
    "format_near",
]

#: Seconds (three years) above which a timeout counts as no limit.  Timers of the kernel and of libev fail at some
#: length, which depends on the thread.
LONGEST_TIMEOUT = 10**8

#: Flags of functions that only make a generator, a coroutine or an asynchronous generator when they are called.
#: ``inspect`` has their names, but importing it takes a tenth of the time that importing this package takes.
DOES_NOT_RUN = 0x20 | 0x80 | 0x200
IS_GENERATOR = 0x20

USE_GENERATOR_HANDLER = "to receive input with yield, use ngi_gevent.generator.handler"
WRITE_DEF = "write def instead of async def"


def as_bytes(data: Any) -> bytes:
    """Return *data* as immutable bytes, because it is sent later.

    :raises TypeError: *data* is not bytes, a bytearray or a memoryview.
    """
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    hint = "; encode text first" if isinstance(data, str) else ""
    raise TypeError(f"data must be bytes, a bytearray or a memoryview; got {data!r:.100}{hint}")


def as_iterator(data: Any) -> Iterator[Any]:
    """Return the iterator over an argument of ``writelines``.

    :raises TypeError: *data* cannot be iterated, or is text or a single bytes object.
    """
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"writelines needs an iterable of bytes objects; got {data!r:.100}; use write for a single one")
    try:
        return iter(data)
    except TypeError:
        raise TypeError(f"writelines needs an iterable of bytes objects; got {data!r:.100}") from None


def close_iterator(iterator: Any) -> None:
    """Close *iterator*, if it can be closed: nothing more is pulled from it.  May block, and raise any exception."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


def check_handler(handler: Any) -> None:
    """Raise ``TypeError`` unless *handler* has a method ``handle_input``."""
    handle_input = getattr(handler, "handle_input", None)
    if isinstance(handler, type) or not callable(handle_input):
        raise TypeError(
            f"a connection handler must be an object with a handle_input method; got {handler!r:.100}{_hint(handler)}"
        )
    code = getattr(handle_input, "__code__", None)
    if code is not None and code.co_flags & DOES_NOT_RUN:
        is_generator = code.co_flags & IS_GENERATOR
        raise TypeError(
            f"handle_input must be a plain function; got {'a generator' if is_generator else 'an async'} function of "
            f"{handler!r:.100}; {USE_GENERATOR_HANDLER if is_generator else WRITE_DEF}"
        )


def check_reason(reason: Any) -> None:
    """Raise ``TypeError`` unless *reason* is text or an exception."""
    if not isinstance(reason, (str, BaseException)):
        raise TypeError(f"a reason must be a str or an exception; got {reason!r:.100}")


def check_returned(result: object, where: str) -> None:
    """Raise ``TypeError`` if the function that should have set a handler made a generator or a coroutine."""
    if isinstance(result, (GeneratorType, CoroutineType)):
        hint = USE_GENERATOR_HANDLER
        if isinstance(result, CoroutineType):
            result.close()  # otherwise Python warns that it was never awaited, which is not the mistake
            hint = WRITE_DEF
        raise TypeError(f"{where} must be a plain function, or its body does not run; got {result!r:.100}; {hint}")


def check_server(server: Any) -> None:
    """Raise ``TypeError`` unless *server* is callable."""
    if not callable(server):
        raise TypeError(f"a server must be a callable that takes a connection; got {server!r:.100}")


def check_client_handler(handler: Any) -> None:
    """Raise ``TypeError`` unless *handler* has the methods of a client connect handler."""
    for method in "connected", "failed_connect":
        if isinstance(handler, type) or not callable(getattr(handler, method, None)):
            raise TypeError(
                "a client connect handler must be an object with methods connected and failed_connect; "
                f"got {handler!r:.100}{_hint(handler)}"
            )


def _hint(handler: Any) -> str:
    """Return what to do if *handler* is a class instead of an object."""
    return f"; pass {handler.__name__}(), not the class {handler.__name__}" if isinstance(handler, type) else ""


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Raise, naming the parameter *name*, unless *value* is an int >= *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}; got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise, naming the parameter *name*, unless *value* is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def check_file_options(mode: Any, owner: Any) -> None:
    """Raise unless *mode* and *owner* are permissions and owner for the file of a Unix socket, or None."""
    if mode is not None:
        if isinstance(mode, bool) or not isinstance(mode, int):
            raise TypeError(f"mode must be an int, such as 0o660; got {mode!r}")
        if not 0 <= mode <= 0o777:
            raise ValueError(f"mode must be from 0 to 0o777, in octal digits such as 0o660; got {mode!r}")
    if owner is not None:
        is_pair = isinstance(owner, tuple) and len(owner) == 2
        if not is_pair or not all(isinstance(part, int) and not isinstance(part, bool) for part in owner):
            raise TypeError(f"owner must be a pair of ints (user, group), where -1 changes nothing; got {owner!r}")
        if not all(-1 <= part < 2**32 - 1 for part in owner):
            raise ValueError(f"the ids of owner must be >= 0, or -1, which changes nothing; got {owner!r}")


def check_max_connections(value: Any) -> None:
    """Raise unless *value* is an int >= 1, or None for the default."""
    if value is not None:
        check_count("max_connections", value, least=1)


def as_timeout(timeout: Any, name: str = "timeout") -> float | None:
    """Return *timeout*, in seconds; None for no limit, which includes infinity and many years.

    Raises, naming the parameter *name*, unless it is a number of seconds, or None.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, or None; got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"{name} must be a number of seconds >= 0; got {timeout!r}")
    return None if timeout > LONGEST_TIMEOUT else timeout


def as_delay(value: Any, name: str) -> float:
    """Return *value*, a finite number of seconds >= 0.  Raises as ``as_timeout``, naming the parameter *name*."""
    delay = as_timeout(value, name)
    if delay is None:
        raise ValueError(f"{name} must be a finite number of seconds; got {value!r}")
    return delay


def connect_delay_of(handler: object) -> float:
    """Return the seconds before an attempt of *handler* begins.  Raises as ``as_delay``."""
    return as_delay(getattr(handler, "connect_delay", 0.0), "connect_delay")


def as_positive_timeout(value: Any, name: str) -> float | None:
    """Return *value*, a positive number of seconds, or None for no limit.  Raises as ``as_timeout``, and for 0."""
    timeout = as_timeout(value, name)
    if timeout == 0:
        raise ValueError(f"{name} must be a number of seconds > 0; got 0")
    return timeout


def format_near(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown *name*: the known one that is near, or nothing."""
    from difflib import get_close_matches  # not before, since importing it takes time

    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, list(known), 1))
