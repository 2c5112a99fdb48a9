"""PROXY headers as bytes: the specification's examples, every cut, random bytes, and trusted networks."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngi_gevent.proxy_protocol import (
    LONGEST,
    LONGEST_LINE,
    SIGNATURE,
    Header,
    TrustedProxies,
    check_header,
    header,
    parse,
)

#: The example of the specification, and the longest lines that it mentions.
EXAMPLE = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n"
FULL = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
LINES = {
    EXAMPLE: (("192.168.0.1", 56324), ("192.168.0.11", 443)),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": (("255.255.255.255", 65535),) * 2,
    f"PROXY TCP6 {FULL} {FULL} 65535 65535\r\n".encode(): ((FULL, 65535, 0, 0),) * 2,
    b"PROXY TCP6 2001:DB8::1 ::1 0 443\r\n": (("2001:db8::1", 0, 0, 0), ("::1", 443, 0, 0)),
    b"PROXY UNKNOWN\r\n": (None, None),
    f"PROXY UNKNOWN {FULL} {FULL} 65535 65535\r\n".encode(): (None, None),
    b"PROXY UNKNOWN whatever\0\xff\r\n": (None, None),
}


def binary(command, family, rest, size=None):
    """Return a header of version 2 that is packed from the given fields."""
    return SIGNATURE + bytes([command, family]) + (len(rest) if size is None else size).to_bytes(2, "big") + rest


IPV4 = bytes([192, 0, 2, 1, 192, 0, 2, 9]) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")
IPV6 = bytes.fromhex("20010db8" + "00" * 11 + "01") + bytes(15) + b"\1" + IPV4[8:]
PATHS = b"/run/client".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")
CLIENT, SERVER = ("192.0.2.1", 56324), ("192.0.2.9", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324, 0, 0), ("::1", 443, 0, 0)
TLVS = b"\x01\x00\x02h2" + b"\x04\x00\x00" + b"\xe0\x00\x01x"
BINARIES = {
    binary(0x21, 0x11, IPV4): (CLIENT, SERVER),
    binary(0x21, 0x12, IPV4): (CLIENT, SERVER),
    binary(0x21, 0x21, IPV6): (CLIENT6, SERVER6),
    binary(0x21, 0x22, IPV6): (CLIENT6, SERVER6),
    binary(0x21, 0x31, PATHS): ("/run/client", b"\0abstract"),
    binary(0x21, 0x32, bytes(216)): ("", ""),
    binary(0x21, 0x11, IPV4 + TLVS): (CLIENT, SERVER),
    binary(0x21, 0x00, b""): (None, None),
    binary(0x21, 0x00, IPV4): (None, None),
    binary(0x21, 0x10, IPV4): (None, None),
    binary(0x20, 0x00, b""): (None, None),
    binary(0x20, 0x11, IPV4 + TLVS): (None, None),
    binary(0x20, 0xFF, b""): (None, None),  # LOCAL makes the family meaningless
    binary(0x21, 0x11, IPV4 + bytes(LONGEST - 28)): (CLIENT, SERVER),
}
HEADERS = LINES | BINARIES


def shortened(data):
    """Return the beginning of *data*, for the name of a test."""
    return repr(data[:40])


@pytest.mark.parametrize("data", HEADERS, ids=shortened)
def test_a_header_is_parsed_up_to_its_end(data):
    expected = Header(*HEADERS[data], len(data))
    assert parse(data) == parse(data + REQUEST) == parse(data + data) == expected


@pytest.mark.parametrize("data", HEADERS, ids=shortened)
def test_a_part_of_a_header_needs_more_input(data):
    assert [parse(data[:size]) for size in range(len(data))] == [None] * len(data)


def test_the_longest_line_is_as_long_as_in_the_specification():
    assert max(map(len, LINES)) == LONGEST_LINE == 107


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4",
        b"PROXY\tTCP4",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.9 1 2\r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.9 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1\n2\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.9 1 2\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.9 1 2\r\n",
        b"PROXY TCP4 localhost 192.0.2.9 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.9 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n",
        b"PROXY TCP6 \xff ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1\0 192.0.2.9 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 +1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1_0 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.9 1 123456\r\n",
        b"PROXY UNKNOWN ".ljust(LONGEST_LINE - 1, b"x") + b"\r\n",
        b"PROXY ".ljust(LONGEST_LINE, b"x"),
        SIGNATURE[:-1] + b"\r",
        binary(0x11, 0x11, IPV4),
        binary(0x31, 0x11, IPV4),
        binary(0x22, 0x11, IPV4),
        binary(0x21, 0x41, IPV4),
        binary(0x21, 0x13, IPV4),
        binary(0x21, 0x11, IPV4[:-1]),
        binary(0x21, 0x21, IPV4),
        binary(0x21, 0x31, PATHS[:-1]),
        binary(0x21, 0x11, b"", size=LONGEST - 15),
        binary(0x20, 0x00, b"", size=0xFFFF),
    ],
)
def test_invalid_headers_are_refused_as_soon_as_possible(data):
    with pytest.raises(ValueError, match="PROXY") as caught:
        parse(data)
    assert len(str(caught.value)) < 600


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_random_bytes_are_parsed_or_refused(data, start):
    data = start + data
    try:
        parsed = parse(data)
    except ValueError:
        return
    assert parsed is None or 0 < parsed.size <= len(data)


@given(st.sampled_from(list(HEADERS)), st.data())
def test_a_changed_byte_is_parsed_or_refused(data, drawn):
    changed = bytearray(data)
    changed[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    try:
        parsed = parse(bytes(changed))
    except ValueError:
        return
    assert parsed is None or parsed.size <= LONGEST


# Headers for clients.


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (CLIENT, SERVER, (CLIENT, SERVER)),
        (CLIENT6, SERVER6, (CLIENT6, SERVER6)),
        (CLIENT, None, (CLIENT, ("0.0.0.0", 0))),
        (CLIENT6, None, (CLIENT6, ("::", 0, 0, 0))),
        (CLIENT, SERVER6, (("::ffff:192.0.2.1", 56324, 0, 0), SERVER6)),
        (CLIENT6, SERVER, (CLIENT6, ("::ffff:192.0.2.9", 443, 0, 0))),
        (("fe80::1%lo", 1, 0, 1), SERVER6, (("fe80::1", 1, 0, 0), SERVER6)),
        (CLIENT, "/run/server", (CLIENT, ("0.0.0.0", 0))),
        (CLIENT, b"", (CLIENT, ("0.0.0.0", 0))),
        (None, SERVER, (None, None)),
    ],
)
def test_a_header_contains_the_addresses_that_it_was_made_of(version, source, destination, expected):
    data = header(source, destination, version=version)
    assert parse(data) == (*expected, len(data))
    check_header(data)


def test_headers_equal_the_examples_byte_for_byte():
    assert header(("192.168.0.1", 56324), ("192.168.0.11", 443), version=1) == EXAMPLE
    assert header(CLIENT, SERVER) == binary(0x21, 0x11, IPV4)
    assert header(CLIENT6, SERVER6) == binary(0x21, 0x21, IPV6)
    assert header("/run/client", b"\0abstract") == binary(0x21, 0x31, PATHS)
    assert header(Path("/run/client"), SERVER) == binary(0x21, 0x31, PATHS[:108] + bytes(108))
    assert header("", None) == binary(0x21, 0x31, bytes(216))
    assert header(None) == binary(0x20, 0x00, b"")
    assert header(None, version=1) == header("/run/client", version=1) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    ("source", "destination", "error", "named"),
    [
        (5, None, TypeError, "source"),
        (("192.0.2.1",), None, TypeError, "source"),
        ((b"192.0.2.1", 1), None, TypeError, "source"),
        (("192.0.2.1", "1"), None, TypeError, "source"),
        (("192.0.2.1", True), None, TypeError, "source"),
        (("192.0.2.1", 65536), None, ValueError, "source"),
        (("localhost", 1), None, ValueError, "source"),
        (("192.0.2.1", 1), ("in memory", 1), ValueError, "destination .* choose"),
        (("192.0.2.1", 1), 5, TypeError, "destination"),
        ("/" + "x" * 108, None, ValueError, "source"),
    ],
)
def test_addresses_that_a_header_cannot_contain_are_refused(source, destination, error, named):
    with pytest.raises(error, match=named):
        header(source, destination)


def test_versions_other_than_1_and_2_are_refused():
    with pytest.raises(ValueError, match="version must be 1 or 2; got 3"):
        header(CLIENT, version=3)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("PROXY UNKNOWN\r\n", TypeError),
        (bytearray(b"PROXY UNKNOWN\r\n"), TypeError),
        (b"", ValueError),
        (b"PROXY UNKNOWN\r", ValueError),
        (b"PROXY UNKNOWN\r\nx", ValueError),
        (b"HELO", ValueError),
    ],
)
def test_only_a_complete_header_can_be_sent(data, error):
    with pytest.raises(error, match="proxy_header"):
        check_header(data)


# Proxies that are trusted.


@pytest.mark.parametrize(
    ("networks", "address", "trusted"),
    [
        (["10.0.0.0/8"], ("10.1.2.3", 5), True),
        (["10.0.0.0/8"], ("11.1.2.3", 5), False),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 5, 0, 0), True),
        (["10.0.0.0/8"], ("::1", 5, 0, 0), False),
        (["192.0.2.7"], ("192.0.2.7", 5), True),
        (["192.0.2.7"], ("192.0.2.8", 5), False),
        (["fe80::/10", "::1"], ("fe80::1%lo", 5, 0, 1), True),
        (["fe80::/10", "::1"], ("::1", 5, 0, 0), True),
        (["0.0.0.0/0"], ("203.0.113.1", 5), True),
        (["0.0.0.0/0"], ("2001:db8::1", 5, 0, 0), False),
        ((IPv4Network("10.0.0.0/8"), IPv6Network("::/0")), ("2001:db8::1", 5, 0, 0), True),
        ({"unix"}, "", True),
        ({"unix"}, "/run/client", True),
        ({"unix"}, b"\0abstract", True),
        ({"unix"}, ("10.1.2.3", 5), False),
        (["0.0.0.0/0", "::/0"], "", False),
    ],
)
def test_a_proxy_is_trusted_by_its_address(networks, address, trusted):
    assert TrustedProxies(networks).are_trusted_at(address) is trusted


@pytest.mark.parametrize(
    ("networks", "error"),
    [
        ("10.0.0.0/8", TypeError),
        (True, TypeError),
        (5, TypeError),
        ([], ValueError),
        (["10.0.0.1/8"], ValueError),
        (["localhost"], ValueError),
        (["/run/socket"], ValueError),
        (["::ffff:10.0.0.0/104"], ValueError),  # no peer would match, since IPv4 peers count as IPv4
        ([10], TypeError),
        ([b"\x0a\0\0\0"], TypeError),
        ([None], TypeError),
    ],
)
def test_invalid_networks_are_refused(networks, error):
    with pytest.raises(error, match="proxy_protocol"):
        TrustedProxies(networks)
