"""All hosts of a simulation, and the links between them."""

from __future__ import annotations

import errno
import re
import socket
from itertools import count
from typing import Any

from ngi_gevent.testing.simulation.files import error
from ngi_gevent.testing.simulation.links import Link, Way
from ngi_gevent.testing.simulation.network import HostNetwork
from ngi_gevent.testing.simulation.schedule import Draws
from ngi_gevent.testing.simulation.sites import Site, is_any, is_loopback
from ngi_gevent.testing.simulation.trace import Trace

__all__ = ["Internet"]

#: The first descriptor of simulated sockets.  It is higher than any real one.
FIRST_DESCRIPTOR = 2**30

#: Seconds that data takes between two hosts: the minimum, and the maximum that is added.
LATENCY, JITTER = 0.001, 0.001

#: The same within one host.
LOCAL_LATENCY, LOCAL_JITTER = 0.00001, 0.00001

#: A host name, which must not look like a number.
HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9_-]+)*", re.ASCII)


class Internet:
    """All hosts, their names and addresses, and their links.

    :ivar loop: the loop on which everything happens.
    :ivar draws: the draws of the network.
    :ivar trace: what happens.
    """

    def __init__(self, loop: Any, draws: Draws, trace: Trace) -> None:
        self.loop = loop
        self.draws = draws
        self.trace = trace
        self._sites: dict[str, Site] = {}
        self._descriptors = count(FIRST_DESCRIPTOR)
        self._ways: dict[tuple[str, str], Way] = {}
        self._default_link = Link(LATENCY, JITTER)
        self._links: dict[tuple[str, str], Link] = {}

    # Hosts.

    def add_host(self, name: str, *, max_descriptors: int = 1024) -> HostNetwork:
        """Add a host, and return its network.

        :raises ValueError: the name is in use, or cannot be a host name.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a host must be a str; got {name!r}")
        if not HOST_NAME.fullmatch(name) or name == "localhost":
            raise ValueError(f"the name of a host must be valid in an address, such as 'server'; got {name!r}")
        if name in self._sites:
            raise ValueError(f"the name of a host must be unused; got {name!r} again")
        if isinstance(max_descriptors, bool) or not isinstance(max_descriptors, int) or max_descriptors < 0:
            raise ValueError(f"max_descriptors must be an int >= 0; got {max_descriptors!r}")
        site = Site(name, len(self._sites) + 1, max_descriptors)
        for other in (*self._sites, name):
            is_itself = other == name
            link = Link(LOCAL_LATENCY, LOCAL_JITTER) if is_itself else self._default_link.copy()
            for pair in (name, other), (other, name):
                self._links[pair] = link
                self._ways[pair] = Way(link, self.draws, self.loop)
        self._sites[name] = site
        return HostNetwork(self, site)

    def crash(self, name: str, *, silent: bool) -> None:
        """Remove all sockets of the host.  If not *silent*, its kernel resets its connections."""
        site = self._site(name)
        sockets = site.sockets()
        for end in list(site.ends):
            if not (silent or end.is_gone):
                end.abort()
            end.vanish()
        site.crash()
        site.is_up = not silent  # after a process is killed, its kernel continues, and refuses connections
        for sock in sockets:
            sock.close()

    def restart(self, name: str) -> HostNetwork:
        """Return the network for a host that starts again."""
        site = self._site(name)
        site.restart()
        return HostNetwork(self, site)

    # Links.

    def set_links(self, **values: float | None) -> None:
        """Change all links between two hosts, including links of later hosts."""
        self._default_link.set(**values)
        for (one, other), link in self._links.items():
            if one != other:
                link.set(**values)

    def link(self, one: str, other: str) -> Link:
        """Return the link between two hosts.

        :raises ValueError: one of them is not a host, or both are the same.
        """
        self._check_two(one, other)
        return self._links[one, other]

    def partition(self, one: str, other: str, *, both: bool = True) -> None:
        """Stop everything from *one* to the *other*, and back if *both*."""
        self._check_two(one, other)
        self.trace.note("partition", "", f"{one} {'<->' if both else '->'} {other}")
        for pair in [(one, other), (other, one)][: 1 + both]:
            self._ways[pair].cut()

    def heal(self, one: str, other: str, *, both: bool = True) -> None:
        """Let everything pass again."""
        self._check_two(one, other)
        self.trace.note("heal", "", f"{one} {'<->' if both else '->'} {other}")
        for pair in [(one, other), (other, one)][: 1 + both]:
            self._ways[pair].heal()

    def _check_two(self, one: str, other: str) -> None:
        self._site(one)
        self._site(other)
        if one == other:
            raise ValueError(f"a link must be between different hosts; got {one!r} twice")

    def _site(self, name: str) -> Site:
        try:
            return self._sites[name]
        except (KeyError, TypeError):
            known = ", ".join(map(repr, self._sites)) or "none"
            raise ValueError(f"no host is named {name!r}; hosts are: {known}") from None

    # Methods for sockets.

    def next_descriptor(self) -> int:
        """Return a new descriptor."""
        return next(self._descriptors)

    def way(self, origin: Site, target: Site) -> Way:
        """Return the way from one host to another."""
        return self._ways[origin.name, target.name]

    def all_sites(self) -> list[Site]:
        """Return all hosts."""
        return list(self._sites.values())

    def site_of(self, origin: Site, host: str) -> Site | None:
        """Return the host that *origin* reaches at an address.  None if there is no such host in its own network.

        :raises OSError: the address is not in a simulated network.
        """
        if is_loopback(host) or is_any(host):
            return origin
        for site in self._sites.values():
            if host in site.addresses.values():
                return site
        if host.startswith(("10.", "fd00:")):
            return None
        raise error(errno.ENETUNREACH)

    def addresses(self, origin: Site, name: str) -> list[tuple[int, str]]:
        """Return the families and addresses of a host name, the preferred first.

        :raises OSError: there is no such host.
        """
        if name == "localhost":
            return [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
        site = self._sites.get(name.removesuffix("."))
        if site is None:
            raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: the simulation has no host {name!r}")
        return [(family, site.addresses[family]) for family in (socket.AF_INET6, socket.AF_INET)]
