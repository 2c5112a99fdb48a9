"""The example SMTP server with STARTTLS: in memory, in a simulation, on sockets, and with real clients."""

from __future__ import annotations

import shutil
import smtplib
import ssl
import subprocess

import gevent
import programs
import pytest
from certificates import AUTHORITY, certificate, client_context, new_client_context, server_context
from stages import PATIENCE

from ngi_gevent import testing
from ngi_gevent.testing.simulation import Simulation


@pytest.fixture
def messages():
    """The messages that the server has delivered."""
    return []


@pytest.fixture
def serve(monkeypatch, messages):
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    from starttls_server import smtp_server

    return smtp_server(server_context(), messages.append)


START = b"EHLO me\r\nSTARTTLS\r\n"
STARTED = b"220 localhost ESMTP\r\n250-localhost\r\n250 STARTTLS\r\n220 go ahead\r\n"
MAIL = b"EHLO me\r\nMAIL FROM:<ann@x.org>\r\nRCPT TO:<bob@x.org>\r\nDATA\r\nSubject: hi\r\n\r\n..dots\r\n.\r\nQUIT\r\n"
MAILED = b"250 localhost\r\n250 ok\r\n250 ok\r\n354 end with a dot on a line\r\n250 delivered\r\n221 bye\r\n"
MESSAGE = (b"ann@x.org", [b"bob@x.org"], b"Subject: hi\r\n\r\n.dots\r\n")


def test_a_message_is_delivered_after_starttls(serve, messages):
    assert testing.converse(serve, [START, MAIL]) == (STARTED + MAILED, "end of input")
    assert messages == [MESSAGE]


def test_no_message_is_accepted_in_plaintext(serve, messages):
    answer = testing.converse(serve, [MAIL]).data
    assert answer.count(b"530 Must issue a STARTTLS command first\r\n") == 3
    assert messages == []


def test_answers_do_not_depend_on_how_commands_are_cut(serve, messages):
    testing.check_chunking(serve, [START, MAIL], join=False)
    assert set(map(str, messages)) == {str(messages[0])}


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        (b"RCPT TO:<bob@x.org>", b"503 first MAIL, then RCPT"),
        (b"MAIL FROM:<a@x.org>\r\nMAIL FROM:<b@x.org>", b"250 ok\r\n503 first MAIL, then RCPT"),
        (b"MAIL FROM:<a@x.org>\r\nDATA", b"250 ok\r\n503 RCPT first"),
        (b"mail from: <> SIZE=3\r\nRSET\r\nrcpt to:<a@x.org>", b"250 ok\r\n250 localhost\r\n503 first MAIL, then RCPT"),
        (b"MAIL FROM:ann\r\nMAIL TO:<a@x.org>", b"501 an address is <name@host>\r\n" * 2),
        (b"STARTTLS\r\nHELO me\r\nnoop", b"500 unknown command\r\n250 localhost\r\n250 ok"),
    ],
)
def test_each_command_gets_its_answer(serve, lines, answers):
    data = testing.converse(serve, [START, lines + b"\r\n"]).data
    assert data == STARTED + answers.removesuffix(b"\r\n") + b"\r\n"


def test_long_messages_and_lines_are_refused(serve, messages):
    begin = b"MAIL FROM:<a@x.org>\r\n" + b"RCPT TO:<b@x.org>\r\n" * 101 + b"DATA\r\n"
    data = testing.converse(serve, [START, begin, (b"x" * 1000 + b"\r\n") * 1100, b".\r\nNOOP\r\n"]).data
    assert data.count(b"452 too many recipients\r\n") == 1
    assert data.endswith(b"\r\n552 the message is too long\r\n250 ok\r\n")
    assert testing.converse(serve, [b"x" * 2000]).closed is not None
    assert messages == []


def test_messages_are_delivered_in_a_simulation(serve, messages):
    for seed in range(10):
        with Simulation(seed) as simulation:
            simulation.host("server").listener(("server", 25), serve)
            client = testing.Recorder()
            simulation.host("client").connect(("server", 25), client)
            connection = client.wait_connected()
            connection.write(START)
            client.expect(STARTED)
            connection.start_tls(client_context(), server_hostname="localhost")
            connection.write(MAIL)
            client.wait_closed()
            assert client.data == STARTED + MAILED
    assert messages == [MESSAGE] * 10


def test_commands_after_starttls_in_plaintext_are_not_obeyed(serve, messages, tcp):
    """This was the attack of 2011: servers kept the plaintext, and treated it as input over TLS."""
    listener = tcp.listen(serve)
    with gevent.Timeout(PATIENCE), gevent.socket.create_connection(listener.address[:2]) as sock:
        sock.sendall(START + MAIL)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert received.startswith(STARTED)
    assert b"250 ok" not in received
    assert messages == []


# Real clients.


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server.pem").write_bytes(certificate("localhost").private_key_and_cert_chain_pem.bytes())
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    with programs.running("starttls_server.py", "--port", 0, tmp_path / "server.pem") as server:
        yield server


@pytest.mark.slow
def test_smtplib_sends_messages(server):
    with smtplib.SMTP("localhost", server.port, timeout=PATIENCE) as client:
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("ann@x.org", ["bob@x.org"], "hello")
        client.starttls(context=new_client_context())
        assert client.sendmail("ann@x.org", ["bob@x.org", "eve@x.org"], "Subject: hi\n\n.hello\n") == {}
        client.sendmail("ann@x.org", ["bob@x.org"], "x" * 70 + "\n" * 1000)
    assert server.process.stdout.readline() == b"23 bytes from 'ann@x.org' to 'bob@x.org, eve@x.org'\n"
    assert server.process.stdout.readline() == b"2070 bytes from 'ann@x.org' to 'bob@x.org'\n"


@pytest.mark.slow
def test_smtplib_refuses_an_untrusted_certificate(server):
    with smtplib.SMTP("localhost", server.port, timeout=PATIENCE) as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            client.starttls(context=ssl.create_default_context())
        client.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_sends_a_message(server, tmp_path):
    options = ["-quiet", "-starttls", "smtp", "-verify_return_error", "-CAfile", tmp_path / "authority.pem"]
    command = ["openssl", "s_client", *options, "-connect", f"localhost:{server.port}"]
    told = subprocess.run(command, input=MAIL, capture_output=True, timeout=60, check=True).stdout
    assert told.endswith(MAILED)
    assert server.process.stdout.readline() == b"22 bytes from 'ann@x.org' to 'bob@x.org'\n"
