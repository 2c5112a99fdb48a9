"""Checks of arguments that no other test covers: handlers that are not Python functions, and coroutines."""

from __future__ import annotations

import functools
import inspect
import math

import pytest

from ngi_gevent.core.checks import DOES_NOT_RUN, LONGEST_TIMEOUT, as_timeout, check_handler, check_returned


class Handler:
    """A handler whose ``handle_input`` is not a function."""

    handle_input = staticmethod(functools.partial(print))


def test_a_handlers_method_can_be_any_callable():
    check_handler(Handler())


def test_the_code_flags_equal_those_in_inspect():
    assert DOES_NOT_RUN == inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def test_a_coroutine_that_a_server_returns_is_closed():
    """Otherwise Python would warn that it was never awaited, which is not the user's mistake."""

    async def serve(connection):
        raise AssertionError("it must not run")

    coroutine = serve(None)
    with pytest.raises(TypeError, match="write def instead of async def"):
        check_returned(coroutine, "the server")
    assert coroutine.cr_frame is None


@pytest.mark.parametrize("value", [None, math.inf, 10**400, LONGEST_TIMEOUT + 1])
def test_infinite_and_very_long_timeouts_mean_no_timeout(value):
    """For some of these values, timers of the system and of libev would raise OverflowError, depending on the
    thread.
    """
    assert as_timeout(value) is None
    assert as_timeout(LONGEST_TIMEOUT) == LONGEST_TIMEOUT == 10**8
