"""Certificates for tests, created in each run, and TLS contexts that use them."""

from __future__ import annotations

import functools
import ssl

import trustme

#: The certificate authority of all tests.
AUTHORITY = trustme.CA()


@functools.cache
def certificate(*names: str) -> trustme.LeafCert:
    """Return a certificate for *names*: hosts, IP addresses, or people."""
    return AUTHORITY.issue_cert(*names)


@functools.cache
def server_context() -> ssl.SSLContext:
    """Return a context for servers on this machine.  All tests share it."""
    return new_server_context()


@functools.cache
def client_context() -> ssl.SSLContext:
    """Return a context for clients that trust the tests' servers.  All tests share it."""
    return new_client_context()


def new_server_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """Return a new context for servers on this machine, which the test can change."""
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    certificate("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


def new_client_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """Return a new context for clients that trust the tests' servers, which the test can change."""
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context
