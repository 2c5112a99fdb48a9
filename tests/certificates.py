"""Certificates for tests, made anew in each run, and contexts that use them."""

from __future__ import annotations

import functools
import ssl

import trustme

#: The authority that signs the certificates of the tests.
AUTHORITY = trustme.CA()


@functools.cache
def certificate(*names: str) -> trustme.LeafCert:
    """A certificate for *names*: hosts, IP addresses, or people."""
    return AUTHORITY.issue_cert(*names)


@functools.cache
def server_context() -> ssl.SSLContext:
    """A context for servers on this machine."""
    return new_server_context()


@functools.cache
def client_context() -> ssl.SSLContext:
    """A context for clients that trust the servers of the tests."""
    return new_client_context()


def new_server_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """A context for servers on this machine, to be changed."""
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    certificate("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


def new_client_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """A context for clients that trust the servers of the tests, to be changed."""
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context
