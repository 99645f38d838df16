"""Messages out, replies back: by the message they answer, until the deadline, each once."""

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid
from server_samples import metadata

from dpfpl_server.federation import exchange as module
from dpfpl_server.federation.exchange import exchange
from dpfpl_server.flower_patches import bear_broken_connections


def told(outcome):
    """Why each site failed, in words."""
    return {site: str(why) for site, why in outcome.failures.items()}


class Clock:
    """Seconds that pass only when the exchange sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(module.time, "sleep", sleep)
    return clock


def make_message(node):
    return Message(content=RecordDict(), metadata=metadata(node))


def reply_to(message, source=None):
    reply = Message(RecordDict({"said": ConfigRecord({"by": message.metadata.dst_node_id})}), reply_to=message)
    if source is not None:
        reply.metadata._src_node_id = source
    return reply


class FakeGrid:
    """``script`` maps seconds on the clock to the replies that become ready then."""

    def __init__(self, clock, script=(), refuse=()):
        self.clock, self.start = clock, clock.now
        self.script = [list(entry) for entry in script]
        self.refuse = refuse
        self.pushed, self.pulls = [], []

    def push_messages(self, messages):
        messages = list(messages)
        self.pushed += messages
        return [None if m.metadata.dst_node_id in self.refuse else m.metadata.message_id for m in messages]

    def pull_messages(self, ids):
        self.pulls.append(set(ids))
        ready = [reply for at, reply in self.script if at <= self.clock.now - self.start + 1e-9]
        self.script = [entry for entry in self.script if entry[1] not in ready]
        return ready


@pytest.fixture
def messages():
    return {"north": make_message(1), "south": make_message(2)}


def test_ends_as_soon_as_all_answered_and_counts_each_once(clock, messages):
    first = reply_to(messages["south"])
    script = [(0.0, first), (0.0, reply_to(messages["south"])), (1.0, reply_to(messages["north"]))]
    grid, heard = FakeGrid(clock, script), []
    outcome = exchange(grid, messages, 50.0, heard.append, clock)
    assert set(outcome.replies) == {"north", "south"}
    assert outcome.replies["south"] is first
    assert outcome.failures == {}
    assert heard == ["south", "north"]
    assert clock.now - grid.start < 1.5
    assert len(grid.pushed) == 2
    assert grid.pulls[0] == {m.metadata.message_id for m in messages.values()}
    assert grid.pulls[-1] == {messages["north"].metadata.message_id}, "only missing sites are pulled again"


def replies_of_the_south(message):
    """When each comes, and why the south then has no reply; empty where it has one."""
    nothing = "NO_REPLY: nothing came within 10 s"
    error = Message(Error(code=3, reason="secret text of a node"), reply_to=message)
    return {
        "at the deadline": (10.0, reply_to(message), ""),
        "from the north, it says": (0.0, reply_to(message, source=1), ""),
        "after the deadline": (30.0, reply_to(message), nothing),
        "to an earlier round's message, or one made up": (0.0, reply_to(make_message(2)), nothing),
        "an error": (0.0, error, "NODE_ERROR: its answer broke off"),
    }


@pytest.mark.parametrize("what", replies_of_the_south(make_message(2)))
def test_a_reply_counts_by_the_message_that_it_answers_and_until_the_deadline(clock, messages, what):
    at, reply, failure = replies_of_the_south(messages["south"])[what]
    grid = FakeGrid(clock, [(0.4, reply_to(messages["north"])), (at, reply)])
    outcome = exchange(grid, messages, 10.0, clock=clock)
    assert set(outcome.replies) == ({"north"} if failure else {"north", "south"})
    assert told(outcome) == ({"south": failure} if failure else {})
    assert clock.now - grid.start < 10.5
    assert failure[:8] != "NO_REPLY" or clock.now - grid.start >= 10.0


def asked_again(messages, grid, clock):
    """The exchange with second messages, and those messages by site."""
    second = {}

    def again(site):
        second[site] = make_message(messages[site].metadata.dst_node_id)
        grid.on_again(site, second[site])
        return second[site]

    return exchange(grid, messages, 10.0, clock=clock, again=again), second


class Answering(FakeGrid):
    """Also answers second messages: ``second`` maps a site to how long after it was asked again it answers."""

    def __init__(self, clock, script=(), second=None):
        super().__init__(clock, script)
        self.second = second or {}

    def on_again(self, site, message):
        if site in self.second:
            self.script.append([self.clock.now - self.start + self.second[site], reply_to(message)])


def test_after_a_look_that_brought_replies_the_next_one_comes_soon(clock, messages, monkeypatch):
    """Its time went into the replies; a look in vain that took long says that the SuperLink has much to do."""
    grid = FakeGrid(clock, [(0.0, reply_to(messages["north"])), (3.0, reply_to(messages["south"]))])
    slept, sleep, pull = [], module.time.sleep, grid.pull_messages
    monkeypatch.setattr(module.time, "sleep", lambda seconds: (slept.append(round(seconds, 3)), sleep(seconds)))
    monkeypatch.setattr(module.time, "monotonic", clock)

    def slow(ids):
        clock.now += 0.7
        return pull(ids)

    grid.pull_messages = slow
    exchange(grid, messages, 10.0, clock=clock)
    assert slept == [0.1, 0.7, 0.7]


def test_L6_a_silent_site_is_asked_once_more_at_half_of_the_time(clock):
    messages = {"north": make_message(1), "south": make_message(2), "west": make_message(3)}
    grid = Answering(clock, [(1.0, reply_to(messages["north"]))], {"south": 0.5})

    outcome, second = asked_again(messages, grid, clock)

    assert set(second) == outcome.again == {"south", "west"}
    assert [m.metadata.dst_node_id for m in grid.pushed] == [1, 2, 3, 2, 3]
    assert outcome.replies["south"].metadata.reply_to_message_id == second["south"].metadata.message_id
    assert told(outcome) == {"west": "NO_REPLY: nothing came within 10 s"}
    assert 10.0 <= clock.now - grid.start < 10.5, "west is asked once, not again and again"
    late = {messages["west"].metadata.message_id, second["west"].metadata.message_id}
    assert {key for key, site in outcome.unanswered.items() if site == "west"} == late


def test_a_slow_site_that_answers_both_messages_is_counted_once_and_as_neither_late_nor_twice(clock, messages):
    script = [(6.0, reply_to(messages["north"])), (8.0, reply_to(messages["south"]))]
    grid = Answering(clock, script, {"north": 2.0, "south": 30.0})

    outcome, second = asked_again(messages, grid, clock)

    assert outcome.replies["north"].metadata.reply_to_message_id == messages["north"].metadata.message_id
    assert set(outcome.replies) == {"north", "south"}
    assert (outcome.late, outcome.duplicates, outcome.failures) == ({}, {}, {})
    assert outcome.unanswered == {second["south"].metadata.message_id: ""}
    clock.now += 30.0
    following = {"north": make_message(1)}
    grid.script.append([clock.now - grid.start, reply_to(following["north"])])
    after = exchange(grid, following, 10.0, clock=clock, earlier=outcome.unanswered)
    assert (after.late, after.duplicates, after.unanswered) == ({}, {}, {})


def test_L6_a_site_whose_reply_broke_off_is_asked_again_at_once_but_only_once(clock, messages):
    broken = [Message(Error(code=3, reason="parts are missing"), reply_to=m) for m in messages.values()]
    grid = Answering(clock, [(1.0, reply) for reply in broken], {"north": 0.3})

    def on_again(site, message):
        if site == "south":
            grid.script.append([2.0, Message(Error(code=3, reason="again"), reply_to=message)])
        else:
            Answering.on_again(grid, site, message)

    grid.on_again = on_again
    outcome, _ = asked_again(messages, grid, clock)

    assert set(outcome.replies) == {"north"}
    assert told(outcome) == {"south": "NODE_ERROR: its answer broke off"}
    assert clock.now - grid.start < 2.5, "asked at once, and twice broken is enough"


def test_an_error_of_the_second_message_does_not_end_the_wait_for_the_first(clock):
    messages = {"north": make_message(1)}
    grid = Answering(clock, [(8.0, reply_to(messages["north"]))])
    grid.on_again = lambda site, message: grid.script.append([6.0, Message(Error(code=5, reason=""), reply_to=message)])

    outcome, _ = asked_again(messages, grid, clock)

    assert set(outcome.replies) == {"north"}
    assert outcome.failures == {}


def test_what_came_while_a_look_took_long_is_looked_for_once_more(clock, messages):
    """Flower waits for the rest of one site's reply with all others behind it; the deadline may pass meanwhile."""
    grid = FakeGrid(clock, [(9.0, reply_to(messages["north"]))])
    pull = grid.pull_messages

    def slow(ids):
        found = pull(ids)
        if len(grid.pulls) == 3:
            clock.now += 12.0
        return found

    grid.pull_messages = slow
    outcome = exchange(grid, messages, 10.0, clock=clock)
    assert set(outcome.replies) == {"north"}


def test_a_message_that_cannot_be_queued_is_a_failure_at_once(clock, messages):
    grid = FakeGrid(clock, [(0.0, reply_to(messages["south"]))], refuse=(1,))

    outcome = exchange(grid, messages, 60.0, clock=clock)

    assert set(outcome.replies) == {"south"}
    assert str(outcome.failures["north"]).startswith("NOT_SENT")
    assert clock.now == grid.start


def test_a_grid_that_takes_nothing_is_a_failure_of_every_site(clock, messages):
    """Flower's grid returns an empty list when the messages are too large for the server."""
    grid = FakeGrid(clock)
    grid.push_messages = lambda messages: []

    outcome = exchange(grid, messages, 60.0, clock=clock)

    assert {why.code for why in outcome.failures.values()} == {"NOT_SENT"}
    assert set(outcome.failures) == {"north", "south"}
    assert clock.now == 100.0


def test_no_sites_is_no_work(clock):
    outcome = exchange(FakeGrid(clock), {}, 60.0, clock=clock)
    assert (outcome.replies, outcome.failures) == ({}, {})


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)", True),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get issuer", False),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired, EOF occurred", False),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", False),
        ("[Errno 111] Connection refused", True),
    ],
)
def test_a_connection_that_closed_within_tls_is_tried_again_and_an_untrusted_one_is_not(text, again):
    grid = HttpGrid("127.0.0.1:1", token="t")
    bear_broken_connections(grid)
    assert grid._retry_invoker.should_giveup(httpx.ConnectError(text)) is not again


def test_a_grid_without_retries_is_left_alone(clock):
    bear_broken_connections(FakeGrid(clock))
