"""Checks of arguments that no other test tries: handlers without their own code, and coroutines that never run."""

from __future__ import annotations

import functools
import inspect
import math

import pytest

from ngi_gevent.core.checks import DOES_NOT_RUN, LONGEST_TIMEOUT, as_timeout, check_handler, check_returned


class Handler:
    """Its ``handle_input`` is not a function."""

    handle_input = staticmethod(functools.partial(print))


def test_a_handler_can_have_any_callable():
    check_handler(Handler())


def test_the_flags_match_inspect():
    assert DOES_NOT_RUN == inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def test_a_coroutine_that_a_server_returns_is_closed():
    """Otherwise Python warns that it was never awaited, which is not the mistake."""

    async def serve(connection):
        raise AssertionError("it must not run")

    coroutine = serve(None)
    with pytest.raises(TypeError, match="write def instead of async def"):
        check_returned(coroutine, "the server")
    assert coroutine.cr_frame is None


@pytest.mark.parametrize("value", [None, math.inf, 10**400, LONGEST_TIMEOUT + 1])
def test_infinity_and_years_mean_no_timeout(value):
    """Timers of the system and of libev would raise OverflowError for some of them, on some threads."""
    assert as_timeout(value) is None
    assert as_timeout(LONGEST_TIMEOUT) == LONGEST_TIMEOUT == 10**8
