"""What is outstanding on one hub, and what to do with the exceptions of handlers there."""

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
    """What is outstanding on the hub of the thread that makes it.

    :ivar sender: sends datagrams; it is not outstanding.
    :ivar mailbox: the mailbox of the hub.
    """

    def __init__(self, network: Network, on_error: OnError) -> None:
        super().__init__(on_error)
        self.sender = DatagramSender(network)
        self.mailbox = Dispatcher.current().mailbox
        self._kept: tuple[Any, str, BaseException, LogRaised] | None = None  # the error for the next wait
        forks.add(self)

    def leave_to_parent(self) -> None:
        """Have nothing outstanding from now on, in a forked child."""
        items: list[Any] = list(self._items)
        self._items.clear()
        self._kept = None
        self.sender.close()
        forks.leave(items)

    def stop(self) -> None:
        super().stop()  # after this, no error is kept, because no wait must come any more
        kept, self._kept = self._kept, None
        if kept is not None:
            log_error(self, *kept)
        self.sender.close()

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is outstanding, or for *timeout* seconds.  Return whether nothing is.

        Raises an exception that was kept for this.
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
        """Wait until all connections are closed, for as long as peers take some of the output in time.

        Callbacks that still run are not waited for.  A closed connection that has one is noticed within a second.
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
        """Keep *error* for ``wait`` to raise.  Return False if there is one already, or no wait can come any more."""
        if self._stops or self._kept is not None:
            return False
        self._kept = peer, where, error, log
        self.wake()
        return True

    def is_waited_for(self) -> bool:
        return bool(self._wakers)

    def set_when_empty(self, flag: Flag) -> None:
        """Set *flag* when nothing is outstanding any more."""
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
    """Log *error*.  One that must end the program, such as Ctrl-C, goes to the main greenlet, as always in gevent."""
    if not (registry.mailbox.is_of_parent and isinstance(error, SystemExit)):  # which is how a forked child ends
        log(peer, where, error)
    hub = get_hub_if_exists()
    if hub is not None and isinstance(error, hub.SYSTEM_ERROR):
        hub.handle_system_error(type(error), error, error.__traceback__)


def keep_first_error(registry: HubRegistry, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
    """Keep *error* for ``wait`` if it is the first one, and log it otherwise.

    One that must end the program does not depend on a wait that may never come.
    """
    hub = get_hub_if_exists()
    ends_program = hub is not None and isinstance(error, hub.SYSTEM_ERROR)
    if (ends_program and not registry.is_waited_for()) or not registry.keep(peer, where, error, log):
        log_and_interrupt(registry, peer, where, error, log)


def on_its_hub(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Call *method* on the thread of the hub that its implementation is for.  A decorator."""

    @functools.wraps(method)
    def call(self: Any, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return self._call(functools.partial(method, self, *arguments, **options))  # type: ignore[no-any-return]

    return call
