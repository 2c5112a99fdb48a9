"""A network with planned faults.  They are the same in memory and on sockets, and are only those that TCP allows."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from iterables import Unbegun

import ngi_gevent
from ngi_gevent import ConnectionClosed, testing
from ngi_gevent.testing import Faults, Faulty, InputFaults, Plan

KINDS = [testing.Implementation, ngi_gevent.Implementation]


@pytest.fixture(params=KINDS, ids=["memory", "network"])
def faulty(request):
    """A function that wraps Faulty with a plan around an implementation of either kind."""
    made = []

    def make(*arguments, **options):
        made.append(Faulty(request.param(), Plan(*arguments, **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()
    gevent.idle()


class Echo(testing.Recorder):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


def talk(implementation, server=Echo):
    """Connect a client to a server; return the client and the server's recorder."""
    served = server()
    client = testing.Recorder()
    implementation.listener(None, served.connected).connect(client)
    client.wait_connected()
    served.wait_connected()
    return client, served


def chunks(recorder, count):
    recorder.wait_until(lambda: sum(map(len, recorder.chunks)) >= count)
    return recorder.chunks


# The single faults.


def test_without_planned_faults_nothing_changes(faulty):
    client, served = talk(faulty())
    client.connection.write(b"hello")
    client.expect(b"HELLO")
    assert served.chunks == [b"hello"]
    client.connection.close()
    assert served.wait_closed() == "end of input"


def test_a_connection_attempt_can_fail(faulty):
    implementation = faulty((Faults(refused=True), Faults()))
    served = testing.Recorder()
    listener = implementation.listener(None, served.connected)
    for fails in True, False, True:
        client = testing.Recorder()
        listener.connect(client) if fails else implementation.connect(listener.address, client)
        client.wait_until(lambda client=client: client.failed or client.connection)
        assert isinstance(client.failed, ConnectionRefusedError) == fails


def test_input_is_cut_into_pieces_and_the_last_one_is_the_rest(faulty):
    client, served = talk(faulty((Faults(server=InputFaults(pieces=(1, 3))),)))
    client.connection.write(b"hello out there")
    assert chunks(served, 15) == [b"h", b"ell", b"o", b" ou", b"t", b" th", b"e", b"re"]
    client.expect(b"HELLO OUT THERE")
    client.connection.write(b"abcde")
    assert chunks(served, 20)[8:] == [b"a", b"bcd", b"e"]


def test_output_of_one_callback_is_joined(faulty):
    class Talkative(testing.Recorder):
        def connected(self, connection):
            super().connected(connection)
            for word in b"one", b"two", b"three":
                connection.write(word)

    implementation = faulty((Faults(client=InputFaults(pieces=(4,))),))
    client, _ = talk(implementation, Talkative)
    assert chunks(client, 11) == [b"onet", b"woth", b"ree"]


def test_later_output_is_not_joined(faulty):
    client, served = talk(faulty((Faults(server=InputFaults(pieces=(4,))),)))
    for word in b"one", b"two", b"three":
        client.connection.write(word)
    assert chunks(served, 11) == [b"one", b"two", b"thre", b"e"]


def test_iterables_keep_their_position_in_the_output(faulty):
    client, served = talk(faulty((Faults(server=InputFaults(pieces=(2,))),)))
    client.connection.write(b"one")
    client.connection.writelines([b"two", bytearray(b"three")])
    client.connection.write(b"four")
    assert chunks(served, 15) == [b"on", b"e", b"tw", b"o", b"th", b"re", b"e", b"fo", b"ur"]


def test_an_iterable_that_raises_is_reported(faulty):
    client, served = talk(faulty((Faults(server=InputFaults(pieces=(2,))),)))
    client.connection.writelines([b"one", 5])
    client.wait_until(lambda: client.exceptions)
    client.connection.write(b"two")
    assert chunks(served, 6) == [b"on", b"e", b"tw", b"o"]


def test_other_connections_overtake_delayed_input(faulty):
    order: list[bytes] = []
    enough = Event()

    class Server(testing.Recorder):
        def handle_input(self, connection, data):
            order.append(data)
            if len(order) == 6:
                enough.set()

    class Starter(testing.Recorder):
        def connected(self, connection):
            for client, data in zip(clients, (b"123", b"456"), strict=True):
                client.connection.write(data)
            super().connected(connection)

    slow, quick = InputFaults(pieces=(1,), delays=(50,)), InputFaults(pieces=(1,))
    implementation = faulty((Faults(server=slow), Faults(server=quick), Faults()))
    listener = implementation.listener(None, Server)
    clients = [testing.Recorder(), testing.Recorder()]
    for client in (*clients, Starter()):
        listener.connect(client)
        client.wait_connected()
    assert enough.wait(10)
    assert order == [b"4", b"5", b"6", b"1", b"2", b"3"]


def test_a_caller_that_waits_also_gets_the_end(faulty):
    class Server(testing.Recorder):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"close":
                listener.close()

    class Starter(testing.Recorder):
        def connected(self, connection):
            super().connected(connection)
            slow.connection.write(b"late")
            connection.write(b"close")

    served: list[Server] = []
    implementation = faulty((Faults(server=InputFaults(delays=(50,))), Faults(server=InputFaults(delays=(1,)))))
    listener = implementation.listener(None, lambda connection: served.append(Server(connection)))
    slow = testing.Recorder()
    for client in slow, Starter():
        listener.connect(client)
        client.wait_connected()
    slow.wait_closed()
    served[0].wait_closed()
    assert (served[0].chunks, served[0].closed) == ([], "stopped")


def test_a_caller_that_waits_also_gets_exceptions(faulty):
    class Server(testing.Recorder):
        def connected(self, connection):
            super().connected(connection)
            connection.writelines([b"one", b"two", 3])

    class Client(testing.Recorder):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"late")

    served = Server()
    listener = faulty((Faults(server=InputFaults(delays=(20,))),)).listener(None, served.connected)
    client = Client()
    listener.connect(client)
    client.expect(b"onetwo")
    served.wait_until(lambda: served.exceptions)
    served.expect(b"late")


@pytest.mark.parametrize("how", ["resets", "ends"])
def test_a_connection_is_reset_after_the_planned_number_of_bytes(faulty, how):
    client, served = talk(faulty((Faults(server=InputFaults(**{how: 7})),)))
    client.connection.write(b"hello out there")
    client.expect(b"HELLO O")
    for recorder in client, served:
        reason = recorder.wait_closed()
        assert reason == "end of input" if how == "ends" else isinstance(reason, ConnectionResetError)
        assert not recorder.connection
    assert served.chunks == [b"hello o"]


def test_a_client_without_faulty_gets_the_end_too(faulty):
    implementation = faulty((Faults(server=InputFaults(resets=2)),))
    served = testing.Recorder()
    listener = implementation.listener(None, served.connected)
    client = testing.Recorder()
    implementation.implementation.connect(listener.address, client)
    client.wait_connected().write(b"hello")
    assert isinstance(client.wait_closed(), ConnectionResetError)
    assert isinstance(served.wait_closed(), ConnectionResetError)
    assert served.chunks == [b"he"]


def test_a_side_can_stop_reading(faulty):
    client, served = talk(faulty((Faults(client=InputFaults(stops=3)),)), testing.Recorder)
    served.connection.write(b"hello")
    assert chunks(client, 3) == [b"hel"]
    size = 1 << 20
    for _ in range(100):
        if served.closed:
            break
        served.connection.write(b"x" * size)
        gevent.sleep(0)
    assert isinstance(served.wait_closed(), ngi_gevent.LimitExceeded)
    assert client.chunks == [b"hel"]
    client.connection.abort()


def test_a_handler_that_has_closed_gets_no_more_callbacks(faulty):
    class Leaves(testing.Recorder):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.close()

    client, served = talk(faulty((Faults(server=InputFaults(pieces=(2,), resets=2)),)), Leaves)
    client.connection.write(b"hello")
    assert client.wait_closed() == "end of input"
    assert (served.chunks, served.closed) == ([b"he"], None)


def test_datagrams_can_be_lost_doubled_and_late(faulty):
    implementation = faulty(datagrams=("sent", "lost", "doubled", "late", "sent"))
    received = testing.Recorder()
    listener = implementation.udp_listener(None, lambda address, data: received.handle_datagram(data))
    received.handle_datagram = lambda data: (received.chunks.append(data), received._wake())
    for number in range(10):
        implementation.udp(listener.address, b"%d" % number)
    received.wait_until(lambda: len(received.chunks) == 10)
    assert received.chunks == [b"0", b"2", b"2", b"4", b"3", b"5", b"7", b"7", b"9", b"8"]


def test_datagrams_of_a_listener_can_be_lost_doubled_and_late(faulty):
    """These datagrams count together with those that ``udp`` sends."""
    implementation = faulty(datagrams=("sent", "lost", "doubled", "late", "sent"))
    received = testing.Recorder()
    listener = implementation.udp_listener(None, lambda address, data: received.handle_datagram(address, data))
    sending = implementation.udp_listener(None, print)
    received.handle_datagram = lambda address, data: (received.chunks.append((address, data)), received._wake())
    for number in range(10):
        send = sending.send if number % 2 else implementation.udp
        send(listener.address, b"%d" % number)
    received.wait_until(lambda: len(received.chunks) == 10)
    assert [data for _, data in received.chunks] == [b"0", b"2", b"2", b"4", b"3", b"5", b"7", b"7", b"9", b"8"]
    assert {data for address, data in received.chunks if address == sending.address} == {b"3", b"5", b"7", b"9"}
    listener.close()
    sending.close()


def test_a_late_datagram_of_a_listener_that_is_closed_is_lost(faulty):
    implementation = faulty(datagrams=("late", "sent"))
    received = testing.Recorder()
    listener = implementation.udp_listener(None, lambda address, data: received.handle_datagram(data))
    received.handle_datagram = lambda data: (received.chunks.append(data), received._wake())
    sending = implementation.udp_listener(None, print)
    sending.send(listener.address, b"late")
    sending.close()
    implementation.udp(listener.address, b"sent")
    received.wait_until(lambda: received.chunks)
    assert received.chunks == [b"sent"]
    listener.close()


# Plans.


def test_a_plan_is_data():
    plan = Plan((Faults(refused=True), Faults(client=InputFaults(pieces=(1, 2), resets=5))), ("lost", "sent"))
    shown = "Plan(connections=(Faults(refused=True), Faults(client=InputFaults(pieces=(1, 2), resets=5))), "
    assert repr(plan) == shown + "datagrams=('lost', 'sent'))"
    assert eval(repr(plan)) == plan
    assert repr(Plan()) == "Plan()"


def test_a_seed_determines_a_plan():
    plans = [Plan.from_seed(seed) for seed in range(200)]
    assert plans == [eval(repr(plan)) for plan in plans]
    assert plans == [Plan.from_seed(seed) for seed in range(200)]
    faults = [faults for plan in plans for faults in plan.connections]
    inputs = [side for fault in faults for side in (fault.client, fault.server)]
    assert any(fault.refused for fault in faults)
    for name in "pieces", "delays", "stops", "resets", "ends":
        assert 20 < sum(bool(getattr(side, name)) for side in inputs) < len(inputs)
    assert {fate for plan in plans for fate in plan.datagrams} == {"sent", "lost", "doubled", "late"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: InputFaults(pieces=(1, 0)),
        lambda: InputFaults(delays=(-1,)),
        lambda: InputFaults(resets=0),
        lambda: InputFaults(stops=True),
        lambda: InputFaults(ends="5"),
        lambda: Plan(datagrams=("eaten",)),
    ],
)
def test_an_impossible_plan_is_refused(make):
    with pytest.raises(ValueError, match=r"got (0|-1|True|'5'|'eaten')$"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Plan(connections=Faults(refused=True)),
            r"connections must be a tuple, .*; got Faults\(refused=True\)",
        ),
        (
            lambda: Plan(connections=(InputFaults(pieces=(1,)),)),
            r"connections must be of type Faults; got InputFaults\(pieces=\(1,\)\)",
        ),
        (lambda: Plan(datagrams="lost"), "datagrams must be a tuple, .*; got 'lost'"),
        (lambda: InputFaults(pieces=3), "pieces must be a tuple, .*; got 3"),
        (lambda: InputFaults(delays=3), "delays must be a tuple, .*; got 3"),
        (lambda: Faults(refused="no"), "refused must be of type bool; got 'no'"),
        (lambda: Faults(client=3), "client must be of type InputFaults; got 3"),
        (lambda: Faults(server=(InputFaults(),)), r"server must be of type InputFaults; got \(InputFaults\(\),\)"),
        (lambda: Faulty(testing.Implementation(), 5), "plan must be a Plan; got 5"),
    ],
)
def test_a_plan_with_objects_of_other_types_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_input_can_have_only_one_end():
    with pytest.raises(ValueError, match=r"can be set; got InputFaults\(resets=3, ends=4\)"):
        InputFaults(resets=3, ends=4)


def test_lists_become_tuples():
    plan = Plan([Faults(server=InputFaults(pieces=[1, 2], delays=[3]))], ["lost"])
    assert plan == Plan((Faults(server=InputFaults(pieces=(1, 2), delays=(3,))),), ("lost",))
    assert hash(plan) == hash(eval(repr(plan)))


def test_the_repr_of_faulty_shows_its_plan():
    assert repr(Faulty(testing.Implementation(), Plan.from_seed(3))).endswith(f"{Plan.from_seed(3)!r})")


# A plan has the same trace each time.


class Trace:
    """The callbacks of one connection, or of one side of it."""

    def __init__(self, meeting):
        self.meeting = meeting
        self.events = []

    def append(self, event):
        self.events.append(event)
        self.meeting.happened()


class Traced:
    """A handler that records its callbacks."""

    def __init__(self, trace):
        self.trace = trace

    def handle_input(self, connection, data):
        self.trace.append(data)

    def handle_close(self, connection, reason):
        self.trace.append(f"close: {type(reason).__name__} {reason}")

    def failed_connect(self, reason):
        self.trace.append(f"failed: {reason!r}")


class LineServer(Traced):
    """A server that greets, answers lines, answers one line in many pieces, and closes on request."""

    def __init__(self, trace, connection):
        super().__init__(trace)
        self.lines = 0
        self.begun = b""
        connection.set_handler(self)
        connection.write(b"welcome ")
        connection.write(b"here\n")

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        *lines, self.begun = (self.begun + data).split(b"\n")
        for line in lines:
            if connection:
                self.answer(connection, line)

    def answer(self, connection, line):
        self.lines += 1
        if line == b"quit":
            connection.write(b"bye\n")
            connection.close()
        elif line == b"fail":
            raise ValueError("as planned")
        elif self.lines % 3:
            connection.write(b"%d: " % self.lines)
            connection.write(line.upper() + b"\n")
        else:
            connection.writelines(iter([b"in", b" pieces", b": " + line, b"\n"]))


class LineClient(Traced):
    """Sends lines, some of them at once and some after an answer."""

    address = None

    def __init__(self, trace, number):
        super().__init__(trace)
        self.number = number
        self.received = b""
        self.sent = 0

    def connected(self, connection):
        self.address = connection.local_address
        connection.set_handler(self)
        for count in range(self.number + 1):
            connection.write(b"line %d of the first\n" % count)

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        self.received += data
        while self.received.count(b"\n") > self.sent and connection:
            self.sent += 1
            if self.sent < 8:
                connection.write(b"and line %d" % self.sent)
                connection.write(b" after\n")
            elif self.number == 0:
                connection.write(b"quit\nand more that is not read\n")
            elif self.number == 1:
                connection.close()
            elif self.number == 2:
                connection.write(b"fail\n")


class Meeting:
    """Four clients that are connected to a server at the same time."""

    def __init__(self, implementation):
        self.implementation = implementation
        self.count = 0
        self.expected = 0
        self.enough = Event()
        self.served = {}
        self.clients = [LineClient(Trace(self), number) for number in range(4)]
        listener = implementation.listener(None, self.serve)
        for client in self.clients:
            implementation.connect(listener.address, client)

    def serve(self, connection):
        self.served[connection.peer_address] = LineServer(Trace(self), connection)

    def happened(self):
        self.count += 1
        if self.count == self.expected:
            self.enough.set()

    def wait(self, expected):
        """Wait for *expected* events, and then for possible others."""
        self.expected = expected
        if self.count < expected:
            self.enough.wait(5)
        for _ in range(3):
            gevent.idle()

    def traces(self):
        """Return the callbacks of all handlers."""
        servers = [self.served.get(client.address) for client in self.clients]
        return [list(one.trace.events) if one else None for one in (*self.clients, *servers)]


def traces_in_memory(plan):
    meeting = Meeting(Faulty(testing.Implementation(), plan))
    traces = meeting.traces()
    meeting.implementation.close()
    return traces


def traces_on_sockets(plan, expected):
    meeting = Meeting(Faulty(ngi_gevent.Implementation(), plan))
    meeting.wait(sum(len(trace or ()) for trace in expected))
    traces = meeting.traces()
    meeting.implementation.close()
    return traces


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(10, 400, 10))])
def test_the_same_plan_has_the_same_traces_in_memory_and_on_sockets(first, caplog):
    caplog.set_level("CRITICAL")  # the plans include handlers that raise
    for seed in range(first, first + 10):
        plan = Plan.from_seed(seed)
        expected = traces_in_memory(plan)
        assert traces_in_memory(plan) == expected, plan
        assert traces_on_sockets(plan, expected) == expected, plan


def test_different_plans_have_different_traces(caplog):
    caplog.set_level("CRITICAL")
    traces = [repr(traces_in_memory(Plan.from_seed(seed))) for seed in range(25)]
    assert len(set(traces)) > 22


@pytest.mark.parametrize("plans", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_the_bytes_of_a_stream_are_never_lost_nor_out_of_order(caplog, plans):
    """With faults, a side gets a prefix of the input that it gets without them.  It gets all of it if nothing ends
    early.
    """
    caplog.set_level("CRITICAL")

    def streams(plan):
        told = [[event for event in trace or () if isinstance(event, bytes)] for trace in traces_in_memory(plan)]
        return [b"".join(pieces) for pieces in told]

    whole = streams(Plan())
    cut = 0
    for seed in range(plans):
        plan = Plan.from_seed(seed)
        for number, (stream, without) in enumerate(zip(streams(plan), whole, strict=True)):
            assert without.startswith(stream), plan
            faults = plan.connection(number % 4)
            ends = faults.refused or faults.client.over_at() or faults.server.over_at()
            if not ends and number in (0, 3):  # these two never close before they have received everything
                assert stream == without, plan
                cut += 1
    assert cut > plans / 2


def test_output_ends_at_a_cut_iterable_and_refuses_more():
    def lines():
        yield b"one"
        raise ValueError

    class Failing(testing.Recorder):
        def handle_eof(self, connection):
            self.handle_input(connection, b".")

    plan = Plan((Faults(server=InputFaults(pieces=(2,))),))
    ngi = Faulty(testing.Implementation(), plan)
    server, client = Failing(), testing.Recorder()
    listener = ngi.listener(None, lambda connection: server.connected(connection))
    listener.connect(client)
    server.connection.pause_reading()
    client.connection.writelines(lines())
    client.connection.write(b"two")
    client.connection.write_eof()
    with pytest.raises(ConnectionClosed, match="half-closed"):
        client.connection.write(b"three")
    server.connection.resume_reading()
    assert server.data == b"onetwo."
    assert [type(error) for error in client.exceptions] == [ValueError]
    listener.close()


def test_an_iterable_that_is_cut_and_discarded_is_closed_even_if_it_never_started():
    closed = []
    ngi = Faulty(testing.Implementation(), Plan((Faults(server=InputFaults(pieces=(2,))),)))
    server, client = testing.Recorder(), testing.Recorder()
    listener = ngi.listener(None, lambda connection: server.connected(connection))
    listener.connect(client)
    server.connection.pause_reading()
    client.connection.writelines(Unbegun(closed))
    client.connection.writelines(Unbegun(closed))
    client.connection.abort()
    assert closed == [True, True]
    listener.close()
