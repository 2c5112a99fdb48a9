"""The example HTTP server: in memory, in a simulation, and with real clients.  These tests need h11."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import Any

import gevent
import programs
import pytest
from browser import needs_chromium
from certificates import AUTHORITY, certificate
from stages import PATIENCE

from ngi_gevent import testing
from ngi_gevent.testing.simulation import Simulation

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(monkeypatch):
    pytest.importorskip("h11")
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    from http_server import http_server

    return http_server()


GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
LAST = b"GET /chunks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_requests_are_answered_in_order_and_the_last_one_closes(serve):
    answer = testing.converse(serve, [GET + POST + GET + LAST])
    assert answer.data.count(b"HTTP/1.1 200") == 4
    assert answer.data.index(b"hello") < answer.data.index(b"abcdefg") < answer.data.rindex(b"hello")
    assert answer.data.endswith(b"chunk 9\n\r\n0\r\n\r\n")
    assert answer.closed == "end of input"


def test_requests_can_be_cut_anywhere(serve):
    testing.check_chunking(serve, POST)


@pytest.mark.parametrize("mistake", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP\r\nHost: x\r\n\r\n"])
def test_an_invalid_request_is_refused(serve, mistake):
    answer = testing.converse(serve, [mistake + GET])
    assert answer.data.startswith(b"HTTP/1.1 400")
    assert answer.data.count(b"HTTP/1.1") == 1
    assert answer.closed == "end of input"


def test_an_invalid_request_after_a_head_request_is_refused(serve):
    answer = testing.converse(serve, [GET.replace(b"GET", b"HEAD") + b"hello\r\n\r\n"])
    assert answer.data.count(b"HTTP/1.1 200") == answer.data.count(b"HTTP/1.1 400") == 1
    assert answer.data.endswith(b"bad request\n")


def test_the_body_of_a_response_to_a_head_request_is_not_made(monkeypatch):
    pytest.importorskip("h11")
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    from http_server import Response, http_server

    made = []
    server = http_server(lambda *_: Response(200, (made.append(number) or b"x" for number in range(3)), 3))
    answer = testing.converse(server, [GET.replace(b"GET", b"HEAD") + GET])
    assert answer.data.count(b"Content-Length: 3\r\n") == 2
    assert answer.data.endswith(b"\r\n\r\nxxx")
    assert made == [0, 1, 2]


def test_a_body_that_is_too_long_is_refused(serve):
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
    answer = testing.converse(serve, [head + b"x" * 2_000_000])
    assert answer.data.startswith(b"HTTP/1.1 413")
    assert answer.closed == "end of input"


def test_an_incomplete_request_is_refused(serve):
    assert testing.converse(serve, [GET[:-4]]).data.startswith(b"HTTP/1.1 400 ")


def test_a_large_download_over_a_slow_link_in_a_simulation(serve):
    for seed in range(5):
        with Simulation(seed) as simulation:
            simulation.host("server").listener(("server", 80), serve)
            client = testing.Recorder()
            host = simulation.host("client")
            simulation.link("server", "client").set(bandwidth=1_000_000)
            host.connect(("server", 80), client)
            client.wait_connected().write(b"GET /bytes/2000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            client.wait_closed()
            assert client.data.partition(b"\r\n\r\n")[2] == b"x" * 2_000_000
            assert 2 < simulation.now() < 3


# Real clients.


def test_requests_behind_a_large_download_wait_outside_the_process(serve):
    requests = b"GET /bytes/1000000 HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 5_000
    with Simulation() as simulation:
        server = simulation.host("server")
        handlers: list[Any] = []
        server.listener(("server", 80), lambda connection: handlers.append(serve(connection)))
        client = testing.Recorder()
        simulation.host("client").connect(("server", 80), client)
        connection = client.wait_connected()
        connection.pause_reading()
        connection.write(requests)
        gevent.sleep(10)
        assert len(handlers[0]._http.trailing_data[0]) < 100_000
        connection.resume_reading()
        client.wait_until(lambda: client.data.count(b"hello\n") == 5_000)


@pytest.fixture(params=["plain", "TLS"])
def url(request, tmp_path):
    pytest.importorskip("h11")
    arguments: list[Any] = ["--port", 0]
    if request.param == "TLS":
        pem = certificate("localhost", "127.0.0.1").private_key_and_cert_chain_pem
        (tmp_path / "server.pem").write_bytes(pem.bytes())
        arguments += ["--certificate", tmp_path / "server.pem"]
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    with programs.running("http_server.py", *arguments) as server:
        yield f"http{'s' if request.param == 'TLS' else ''}://127.0.0.1:{server.port}"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_its_answers(url, tmp_path):
    def curl(*arguments: str, input: bytes = b"") -> bytes:
        command = ["curl", "-sS", "--cacert", str(tmp_path / "authority.pem"), *arguments]
        return subprocess.run(command, input=input, capture_output=True, timeout=60, check=True).stdout

    assert curl(f"{url}/hello", f"{url}/hello") == b"hello\nhello\n"
    assert curl("-d", "a body", f"{url}/echo") == b"a body"
    assert curl(f"{url}/chunks") == b"".join(b"chunk %d\n" % number for number in range(10))
    assert curl("-o", "/dev/null", "-w", "%{size_download}", f"{url}/bytes/200000000") == b"200000000"
    body = b"x" * 300_000
    assert curl("-H", "Expect: 100-continue", "--data-binary", "@-", f"{url}/echo", input=body) == body
    assert curl("--http1.1", "-I", f"{url}/hello").startswith(b"HTTP/1.1 200")


def test_a_client_reuses_its_connection(url, tmp_path):
    """The second of two requests uses the same connection, whatever body the first had."""
    httpx = pytest.importorskip("httpx")
    ports = set()
    context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE) as client:
        for path, size in ("hello", 6), ("chunks", 80), ("bytes/300000", 300_000), ("nowhere", 10), ("hello", 6):
            answer = client.get(f"{url}/{path}")
            assert len(answer.content) == size
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        answer = client.post(f"{url}/echo", content=iter([b"one ", b"two"]))  # this body is sent in chunks
        assert (answer.content, answer.http_version) == (b"one two", "HTTP/1.1")
        with client.stream("GET", f"{url}/bytes/5000000") as stream:
            assert sum(map(len, stream.iter_raw())) == 5_000_000
    assert len(ports) == 1


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_gets_only_answers(url):
    """It makes many requests at once, and none fails."""
    command = ["wrk", "-t1", "-c50", "-d1s", f"{url}/hello"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Socket errors" not in output
    assert "Non-2xx" not in output
    assert int(output.partition(" requests in ")[0].split()[-1]) > 50


@needs_chromium
def test_a_browser_gets_its_answers(url, browser):
    tab = browser.tab()
    tab.open(f"{url}/hello")
    assert tab.run("document.body.innerText") == "hello\n"
    fetched = "fetch('/hello').then(answer => answer.text())"
    assert tab.run(f"Promise.all([{', '.join([fetched] * 20)}])") == ["hello\n"] * 20
    assert tab.run("fetch('/chunks').then(answer => answer.text())").endswith("chunk 9\n")
    assert tab.run("fetch('/bytes/5000000').then(answer => answer.blob()).then(blob => blob.size)") == 5_000_000
    echo = "fetch('/echo', {method: 'POST', body: 'x'.repeat(300000)}).then(answer => answer.text())"
    assert tab.run(echo) == "x" * 300_000
    assert tab.run("fetch('/nowhere').then(answer => answer.status)") == 404


def test_the_requests_library_gets_its_answers(url, tmp_path):
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False  # the environment would override the next line
        session.verify = str(tmp_path / "authority.pem")
        assert [session.get(f"{url}/hello").text for _ in range(3)] == ["hello\n"] * 3
        assert session.post(f"{url}/echo", data=iter([b"one ", b"two"])).content == b"one two"
        assert session.get(f"{url}/nowhere").status_code == 404
        assert session.head(f"{url}/hello").content == b""
