"""The example chat over WebSocket: in memory, in a simulation, and with real clients.  The tests need wsproto."""

from __future__ import annotations

import asyncio
from typing import Any

import programs
import pytest
from browser import needs_chromium

from ngi_gevent import testing
from ngi_gevent.testing.simulation import Simulation

pytestmark = pytest.mark.slow


@pytest.fixture
def make_chat(monkeypatch):
    pytest.importorskip("wsproto")
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    from websocket_chat import Chat

    return Chat


class Peer(testing.Recorder):
    """A client with the same parser as the server."""

    def __init__(self) -> None:
        from wsproto import ConnectionType, WSConnection

        super().__init__()
        self.parser = WSConnection(ConnectionType.CLIENT)
        self.messages: list[str] = []
        self.codes: list[int] = []

    def connected(self, connection: Any) -> None:
        from wsproto.events import Request

        super().connected(connection)
        connection.write(self.parser.send(Request(host="server", target="/")))

    def handle_input(self, connection: Any, data: bytes) -> None:
        from wsproto.events import CloseConnection, TextMessage

        self.parser.receive_data(data)
        for event in self.parser.events():
            if isinstance(event, TextMessage):
                self.messages.append(event.data)
            elif isinstance(event, CloseConnection):
                self.codes.append(event.code)
        super().handle_input(connection, data)

    def say(self, text: str, **options: Any) -> None:
        from wsproto.events import TextMessage

        self.connection.write(self.parser.send(TextMessage(data=text, **options)))


def test_each_message_goes_to_all_clients(ngi, make_chat):
    listener = ngi.listener(None, make_chat())
    peers = [Peer(), Peer(), Peer()]
    for peer in peers:
        listener.connect(peer)
    peers[0].say("hello")
    peers[1].say("how ", message_finished=False)
    peers[1].say("are you?")
    assert [peer.messages for peer in peers] == [["hello", "how are you?"]] * 3
    listener.close()


def test_a_long_message_and_a_binary_one_end_the_connection(ngi, make_chat):
    from wsproto.events import BytesMessage

    chat = make_chat()
    listener = ngi.listener(None, chat)
    long, binary, other = Peer(), Peer(), Peer()
    for peer in long, binary, other:
        listener.connect(peer)
    long.say("x" * 100_000)
    binary.connection.write(binary.parser.send(BytesMessage(data=b"x")))
    assert (long.codes, binary.codes, other.messages) == ([1009], [1003], [])
    assert len(chat.clients) == 1
    listener.close()


def test_a_message_in_endless_pieces_ends_the_connection(ngi, make_chat, monkeypatch):
    """The pieces are counted even if they are empty."""
    import websocket_chat

    monkeypatch.setattr(websocket_chat, "MAX_MESSAGE", 100)
    listener = ngi.listener(None, make_chat())
    peer = Peer()
    listener.connect(peer)
    for _ in range(100):
        peer.say("", message_finished=False)
    assert peer.codes == []
    peer.say("", message_finished=False)
    assert peer.codes == [1009]
    listener.close()


def test_a_request_without_a_websocket_gets_the_page(make_chat):
    answer = testing.converse(make_chat(), [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
    assert answer.data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.data.endswith(b"</script>\n")
    assert answer.closed == "end of input"


def test_a_client_lost_in_a_crash_does_not_delay_others(make_chat):
    for seed in range(10):
        with Simulation(seed) as simulation:
            chat = make_chat()
            simulation.host("server").listener(("server", 80), chat)
            hosts = [simulation.host(f"client{number}") for number in range(3)]
            peers = [Peer() for _ in hosts]
            for host, peer in zip(hosts, peers, strict=True):
                host.connect(("server", 80), peer)
                peer.wait_until(lambda peer=peer: peer.data)
            hosts[0].crash()
            peers[1].say("hello")
            peers[2].wait_until(lambda peers=peers: peers[2].messages)
            assert len(chat.clients) == 2


@pytest.fixture
def port():
    pytest.importorskip("wsproto")
    with programs.running("websocket_chat.py", "--port", 0) as server:
        yield server.port


def test_the_websockets_library_can_chat(port):
    websockets = pytest.importorskip("websockets")

    async def talk() -> None:
        url = f"ws://127.0.0.1:{port}/"
        async with websockets.connect(url) as one, websockets.connect(url) as other:
            await one.send("hello")
            assert [await one.recv(), await other.recv()] == ["hello", "hello"]
            await (await other.ping())
            await other.send("x" * 60_000)
            assert len(await one.recv()) == 60_000

    asyncio.run(asyncio.wait_for(talk(), 30))


@needs_chromium
def test_browsers_can_chat(port, browser):
    """Two browsers show the unchanged page.  Messages are typed into them, and a third client sends one."""
    websockets = pytest.importorskip("websockets")

    tabs = [browser.tab(), browser.tab()]
    for tab in tabs:
        tab.open(f"http://127.0.0.1:{port}/")
        assert tab.run("document.title") == "Chat"
        tab.run("new Promise(done => socket.readyState == 1 ? done() : socket.onopen = done)")
    say = "input.value = 'h\u00e9llo'; document.querySelector('form').requestSubmit()"
    wait = """new Promise(done => {
        const look = () => list.childElementCount == %d ? done(list.innerText) : setTimeout(look, 5)
        look()
    })"""
    tabs[0].run(say)
    assert [tab.run(wait % 1) for tab in tabs] == ["h\u00e9llo"] * 2

    async def tell() -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}/") as client:
            await client.send("x" * 60_000)
            assert len(await client.recv()) == 60_000

    asyncio.run(asyncio.wait_for(tell(), 30))
    assert [len(tab.run(wait % 2)) for tab in tabs] == [60_006] * 2
