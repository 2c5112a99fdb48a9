"""Plans for the faults of a network: data, made by hand or from a seed, whose ``repr`` is code that makes the same
plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Literal, TypeAlias, get_args

__all__ = ["Fate", "Faults", "InputFaults", "Plan"]

#: The fate of a datagram.  A late one arrives after the next that is not late.  If there is no such datagram, it is
#: lost.
Fate: TypeAlias = Literal["sent", "lost", "doubled", "late"]


def _check(name: str, values: Sequence[object], least: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be ints >= {least}; got {value!r:.100}")


def _check_kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}; got {value!r:.100}")


class _Data:
    """A base for plans: accepts lists as tuples, and omits default values in its ``repr``."""

    def _take_tuple(self, name: str, kind: type | None = None) -> None:
        """Make *name* a tuple, and check that its values are of *kind*, if given."""
        values = getattr(self, name)
        if not isinstance(values, (tuple, list)):
            raise TypeError(f"{name} must be a tuple, such as (first,), or a list; got {values!r:.100}")
        for value in values:
            if kind is not None:
                _check_kind(name, value, kind)
        object.__setattr__(self, name, tuple(values))  # the dataclass is frozen

    def __repr__(self) -> str:
        unusual = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                unusual.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(unusual)})"


@dataclass(frozen=True, repr=False)
class InputFaults(_Data):
    """The faults of the input of one side of a connection.

    The output that the other side writes in one callback, or in one call outside callbacks, is cut into pieces.
    Without *pieces*, it arrives in one piece.

    :ivar pieces: the bytes of each piece.  After the last, the first is used again.
    :ivar delays: the turns of other connections that each piece waits for.  After the last, the first is used again.
    :ivar stops: bytes of input after which this side stops reading.
    :ivar resets: bytes of input after which the connection is reset; both sides get a ``ConnectionResetError``.
    :ivar ends: bytes of input after which the connection ends; both sides get ``'end of input'``.

    Only one of *stops*, *resets* and *ends* can be set.
    """

    pieces: tuple[int, ...] = ()
    delays: tuple[int, ...] = ()
    stops: int | None = None
    resets: int | None = None
    ends: int | None = None

    def __post_init__(self) -> None:
        self._take_tuple("pieces")
        self._take_tuple("delays")
        _check("pieces", self.pieces, 1)
        _check("delays", self.delays, 0)
        for name in "stops", "resets", "ends":
            value = getattr(self, name)
            _check(name, () if value is None else (value,), 1)
        if sum(at is not None for at in (self.stops, self.resets, self.ends)) > 1:
            raise ValueError(f"only one of stops, resets and ends can be set; got {self!r:.100}")

    def over_at(self) -> int | None:
        """Return after how many bytes the input ends, or None."""
        return next((at for at in (self.stops, self.resets, self.ends) if at is not None), None)


@dataclass(frozen=True, repr=False)
class Faults(_Data):
    """The faults of one connection; none by default.

    :ivar refused: whether the connection attempt fails: ``failed_connect`` is called with a ``ConnectionRefusedError``.
    :ivar client: the faults of the client's input.
    :ivar server: the faults of the server's input.
    """

    refused: bool = False
    client: InputFaults = InputFaults()
    server: InputFaults = InputFaults()

    def __post_init__(self) -> None:
        _check_kind("refused", self.refused, bool)
        _check_kind("client", self.client, InputFaults)
        _check_kind("server", self.server, InputFaults)


@dataclass(frozen=True, repr=False)
class Plan(_Data):
    """The faults of connections, in the order of their attempts, and the fates of datagrams, in the order of sending.

    After the last item of either, the first is used again.  An empty tuple means no faults.
    """

    connections: tuple[Faults, ...] = ()
    datagrams: tuple[Fate, ...] = ()

    def __post_init__(self) -> None:
        self._take_tuple("connections", Faults)
        self._take_tuple("datagrams")
        for fate in self.datagrams:
            if fate not in get_args(Fate):
                raise ValueError(f"the fate of a datagram must be one of {get_args(Fate)}; got {fate!r:.100}")

    @classmethod
    def from_seed(cls, seed: int) -> Plan:
        """Make a random plan, which is the same each time for the same *seed*."""
        random = Random(seed)
        return cls(
            connections=tuple(_faults(random) for _ in range(random.randint(1, 4))),
            datagrams=tuple(random.choices(get_args(Fate), (6, 1, 1, 1))[0] for _ in range(random.randint(1, 12))),
        )

    def connection(self, number: int) -> Faults:
        """Return the faults of connection *number*, counted from 0."""
        return self.connections[number % len(self.connections)] if self.connections else Faults()

    def datagram(self, number: int) -> Fate:
        """Return the fate of datagram *number*, counted from 0."""
        return self.datagrams[number % len(self.datagrams)] if self.datagrams else "sent"


def _faults(random: Random) -> Faults:
    if random.random() < 0.1:
        return Faults(refused=True)
    return Faults(client=_input(random), server=_input(random))


def _input(random: Random) -> InputFaults:
    pieces = random.choices((1, 2, 3, 5, 8, 21, 89, 1000), k=random.randint(1, 6))
    delays = random.choices((0, 1, 2, 5), k=random.randint(0, 4))
    end = random.choices(("", "stops", "resets", "ends"), (7, 1, 1, 1))[0]
    after = {end: random.choice((random.randint(1, 20), random.randint(1, 500)))} if end else {}
    return InputFaults(pieces=tuple(pieces), delays=tuple(delays), **after)
