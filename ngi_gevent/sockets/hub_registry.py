"""The registry of one hub, and the functions that handle exceptions of handlers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ngi_gevent.core import clock, forks
from ngi_gevent.core.registry import OnError, Registry, log_error
from ngi_gevent.core.threads import Flag, get_hub_if_exists
from ngi_gevent.sockets.datagram_socket import DatagramSender
from ngi_gevent.sockets.dispatcher import Dispatcher
from ngi_gevent.sockets.linger import CHECK_INTERVAL, SEND_TIMEOUT

if TYPE_CHECKING:
    from ngi_gevent.core.logs import LogRaised
    from ngi_gevent.sockets.network import Network

__all__ = ["HubRegistry", "keep_first_error", "log_and_interrupt", "on_its_hub"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HubRegistry(Registry):
    """The registry of the calling thread's hub.

    :ivar sender: sends datagrams; ``wait`` does not wait for it.
    :ivar mailbox: the mailbox of the hub.
    """

    def __init__(self, network: Network, on_error: OnError) -> None:
        super().__init__(on_error)
        self.sender = DatagramSender(network)
        self.mailbox = Dispatcher.current().mailbox
        self._kept: tuple[Any, str, BaseException, LogRaised] | None = None  # the error for the next wait
        forks.add(self)

    def leave_to_parent(self) -> None:
        """Forget everything, in a forked child."""
        items: list[Any] = list(self._items)
        self._items.clear()
        self._kept = None
        self.sender.close()
        forks.leave(items)

    def stop(self) -> None:
        super().stop()  # from now on, errors are not kept, because no wait has to follow
        kept, self._kept = self._kept, None
        if kept is not None:
            log_error(self, *kept)
        self.sender.close()

    def wait(self, timeout: float | None) -> bool:
        """Wait until the registry is empty, for *timeout* seconds at most.  Return whether it is empty.

        Raises the exception that was kept for ``wait``.
        """
        deadline = clock.deadline_after(timeout)
        in_time = True
        while in_time and self and self._kept is None:
            flag = Flag()
            self._wakers.append(flag.set)
            try:
                in_time = flag.wait(_until_next_check(deadline)) or clock.left_until(deadline) != 0
            finally:
                self.forget_waker(flag.set)
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept[2]
        return not self

    def wait_for_delivery(self) -> None:
        """Wait until all connections are closed, as long as peers take some of the output in time.

        Does not wait for running callbacks.  The close of a connection with a running callback is noticed within a
        second.
        """
        left, deadline = self.unsent_size(), clock.now() + SEND_TIMEOUT
        while not self.wait(CHECK_INTERVAL):
            before, left = left, self.unsent_size()
            if left is None:
                return
            if left != before:
                deadline = clock.now() + SEND_TIMEOUT
            elif clock.now() > deadline:
                return

    def keep(self, peer: Any, where: str, error: BaseException, log: LogRaised) -> bool:
        """Keep *error* for ``wait`` to raise.  Return False if one is kept already, or no ``wait`` has to follow."""
        if self._stops or self._kept is not None:
            return False
        self._kept = peer, where, error, log
        self.wake()
        return True

    def is_waited_for(self) -> bool:
        return bool(self._wakers)

    def set_when_empty(self, flag: Flag) -> None:
        """Set *flag* when the registry is empty."""
        if self:
            self._wakers.append(flag.set)
        else:
            flag.set()

    def forget_waker(self, wake: Callable[[], object]) -> None:
        if wake in self._wakers:
            self._wakers.remove(wake)


def _until_next_check(deadline: float | None) -> float | None:
    """Return how many seconds to wait until *deadline* or the next check for signals.

    A Ctrl-C that arrives after the loop has checked for signals, and before it sleeps, does not end the sleep.
    """
    left = clock.left_until(deadline)
    if clock.is_virtual():
        return left
    return CHECK_INTERVAL if left is None else min(left, CHECK_INTERVAL)


def log_and_interrupt(registry: HubRegistry, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
    """Log *error*.  If it must end the program, as Ctrl-C does, raise it in the main greenlet, as gevent does."""
    if not (registry.mailbox.is_of_parent and isinstance(error, SystemExit)):  # SystemExit ends a forked child
        log(peer, where, error)
    hub = get_hub_if_exists()
    if hub is not None and isinstance(error, hub.SYSTEM_ERROR):
        hub.handle_system_error(type(error), error, error.__traceback__)


def keep_first_error(registry: HubRegistry, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
    """Keep *error* for ``wait`` if it is the first one; otherwise log it.

    An error that must end the program is not kept unless a caller waits, because no ``wait`` may follow.
    """
    hub = get_hub_if_exists()
    ends_program = hub is not None and isinstance(error, hub.SYSTEM_ERROR)
    if (ends_program and not registry.is_waited_for()) or not registry.keep(peer, where, error, log):
        log_and_interrupt(registry, peer, where, error, log)


def on_its_hub(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Decorate *method* to run on the hub's thread of its implementation."""

    @functools.wraps(method)
    def call(self: Any, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return self._call(functools.partial(method, self, *arguments, **options))  # type: ignore[no-any-return]

    return call
