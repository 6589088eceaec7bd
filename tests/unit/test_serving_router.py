"""The least busy replica takes a call; a lost one's calls go to another, once. Over real Unix sockets, in one process."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import call, eventually

from modelyard.serving import router as module
from modelyard.serving.channel import Channel
from modelyard.serving.frames import CallFrame, CancelFrame, EndFrame, Fault, HealthFrame, MoreFrame, PartFrame, Usage
from modelyard.serving.router import Router, Underway, choose
from modelyard.serving.types import Endpoint

LOADS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=6)


@given(LOADS, st.integers(0, 100))
def test_the_least_load_is_chosen(loads, turn):
    assert loads[choose(loads, turn)] == min(loads)


@given(LOADS)
def test_equals_take_turns(loads):
    chosen = Counter(choose(loads, turn) for turn in range(60))
    equals = [index for index, load in enumerate(loads) if load == min(loads)]
    assert chosen == dict.fromkeys(equals, 60 // len(equals))


class Asked(Underway):
    __slots__ = ("done", "events", "restartable")

    def __init__(self, group, number, deadline=2e9):
        self.frame, self.group, self.link, self.retried = call(number, b"body", deadline=deadline), group, None, False
        self.events, self.restartable = [], True
        self.done = asyncio.get_running_loop().create_future()

    def part(self, data, head):
        self.events.append(("part", data))

    def ended(self, usage, error):
        self.events.append(("ended", usage.units, error.code if error else None))
        if not self.done.done():
            self.done.set_result(None)

    def late(self, error):
        self.events.append(("late", error.code))

    def restart(self):
        self.events.clear()
        return self.restartable


class Replica:
    """A fake replica on a real socket. `answers` decides what it says to a frame."""

    def __init__(self, name, path):
        self.name, self.path, self.got, self.channels = name, path, [], []
        self.endpoint = Endpoint(name, str(path))
        self.answers = self.echo
        self.arrived = asyncio.Event()

    async def start(self):
        self.server = await asyncio.get_running_loop().create_unix_server(self._connected, str(self.path))
        return self

    def _connected(self):
        channel = Channel(asyncio.get_running_loop(), lambda frame: self._received(channel, frame), lambda _: None)
        self.channels.append(channel)
        return channel

    def _received(self, channel, frame):
        self.got.append(frame)
        self.arrived.set()
        self.answers(channel, frame)

    def echo(self, channel, frame):
        if isinstance(frame, CallFrame):
            channel.send(PartFrame(frame.id, 0, 1, self.name.encode()))
            channel.send(EndFrame(frame.id, Usage(1, 5), 0))
        elif isinstance(frame, HealthFrame):
            channel.send(HealthFrame(frame.seq, "ready"))

    def silent(self, channel, frame):
        pass

    def refuse(self, channel, frame):
        if isinstance(frame, CallFrame):
            channel.send(EndFrame(frame.id, Usage(), 0, Fault("unavailable", "The replica is ending.")))

    def overload(self, channel, frame):
        if isinstance(frame, CallFrame):
            channel.send(EndFrame(frame.id, Usage(), 0, Fault("overloaded", "The answer would take too long.")))

    async def die(self):
        self.server.close()
        for channel in self.channels:
            channel.close()
        self.path.unlink(missing_ok=True)

    def calls(self):
        return [frame.id for frame in self.got if isinstance(frame, CallFrame)]


def over(count):
    """Run `scenario(router, replicas, group)` with so many fake replicas."""

    def wrap(scenario):
        def test(tmp_path):
            async def run():
                loop = asyncio.get_running_loop()
                replicas = [await Replica(f"r{n}", tmp_path / f"{n}.sock").start() for n in range(count)]
                router = Router(loop)
                try:
                    await scenario(router, replicas, router.group([r.endpoint for r in replicas]))
                finally:
                    router.close()
                    for replica in replicas:
                        await replica.die()
                    await asyncio.sleep(0.005)

            asyncio.run(asyncio.wait_for(run(), 20))

        test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
        return test

    return wrap


async def ask(router, group, number=1, **options):
    asked = Asked(group, number, **options)
    router.send(asked)
    return asked


@over(1)
async def test_a_call_sent_before_the_connection_is_made_waits_for_it(router, replicas, group):
    asked = await ask(router, group)
    await asked.done
    assert asked.events == [("part", b"r0"), ("ended", 1, None)]


@over(3)
async def test_calls_spread_over_replicas(router, replicas, group):
    for replica in replicas:
        replica.answers = replica.silent
    for number in range(9):
        await ask(router, group, number)
    await eventually(lambda: [len(r.calls()) for r in replicas] == [3, 3, 3])


@over(2)
async def test_a_reported_queue_counts_as_load(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    group.links[0].depth = 50
    for number in range(5):
        await (await ask(router, group, number)).done
    assert len(replicas[0].calls()) <= 1


@over(2)
async def test_the_calls_of_a_lost_replica_go_to_another(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    replicas[0].answers = replicas[0].silent
    asked = [await ask(router, group, number) for number in range(10)]
    await eventually(lambda: replicas[0].calls())
    await replicas[0].die()
    await asyncio.gather(*(a.done for a in asked))
    assert all(a.events == [("part", b"r1"), ("ended", 1, None)] for a in asked)
    assert not group.links[0].calls
    assert not group.links[1].calls


@over(2)
async def test_a_call_that_was_passed_on_is_not_sent_again(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    for replica in replicas:
        replica.answers = replica.silent
    asked = await ask(router, group)
    asked.restartable = False
    await eventually(lambda: replicas[0].calls() or replicas[1].calls())
    await (replicas[0] if replicas[0].calls() else replicas[1]).die()
    await asked.done
    assert asked.events == [("ended", 0, "unavailable")]


@over(1)
async def test_a_lost_replica_without_another(router, replicas, group):
    replicas[0].answers = replicas[0].silent
    asked = await ask(router, group)
    await eventually(replicas[0].calls)
    await replicas[0].die()
    await asked.done
    assert asked.events == [("ended", 0, "unavailable")]
    later = await ask(router, group, 2)
    await later.done
    assert later.events == [("ended", 0, "unavailable")]


@over(1)
async def test_a_replica_that_comes_back_is_found(router, replicas, group):
    await (await ask(router, group)).done
    await replicas[0].die()
    await eventually(lambda: group.links[0].up is False)
    await replicas[0].start()
    await eventually(lambda: group.links[0].up)
    again = await ask(router, group, 2)
    await again.done
    assert again.events[-1] == ("ended", 1, None)


@over(2)
async def test_a_replica_that_is_ending_hands_over(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    replicas[0].answers = replicas[0].refuse
    for number in range(6):
        asked = await ask(router, group, number)
        await asked.done
        assert asked.events[-1] == ("ended", 1, None)
    assert len(replicas[0].calls()) == 1  # it was tried once, then taken last


@over(2)
async def test_a_replica_that_has_too_much_hands_over_and_stays_in_use(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    replicas[0].answers = replicas[0].overload
    for number in range(6):
        asked = await ask(router, group, number)
        await asked.done
        assert asked.events == [("part", b"r1"), ("ended", 1, None)]
    assert len(replicas[0].calls()) >= 3  # it is not taken last
    assert not group.links[0].draining


@over(2)
async def test_where_all_have_too_much_the_call_is_told_so(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    for replica in replicas:
        replica.answers = replica.overload
    asked = await ask(router, group)
    await asked.done
    assert asked.events == [("ended", 0, "overloaded")]
    assert len(replicas[0].calls()) + len(replicas[1].calls()) == 2


@over(2)
async def test_a_call_is_handed_over_once(router, replicas, group):
    for replica in replicas:
        replica.answers = replica.refuse
    asked = await ask(router, group)
    await asked.done
    assert asked.events == [("ended", 0, "unavailable")]
    assert len(replicas[0].calls()) + len(replicas[1].calls()) == 2


@over(1)
async def test_a_late_call_is_told_and_cancelled_and_still_ends(router, replicas, group):
    replicas[0].answers = replicas[0].silent
    asked = await ask(router, group, deadline=50.0)
    await eventually(replicas[0].calls)
    router.check(40.0)
    assert not asked.events
    router.check(60.0)
    assert asked.events == [("late", "timed_out")]
    await eventually(lambda: any(isinstance(frame, CancelFrame) for frame in replicas[0].got))
    replicas[0].channels[0].send(EndFrame(1, Usage(3, 9), 0))
    await asked.done
    assert asked.events == [("late", "timed_out"), ("ended", 3, None)]


@over(1)
async def test_a_replica_no_longer_wanted_finishes_its_calls_first(router, replicas, group):
    replicas[0].answers = replicas[0].silent
    asked = await ask(router, group)
    await eventually(replicas[0].calls)
    router.keep([])
    router.check(0.0)
    replicas[0].echo(replicas[0].channels[0], asked.frame)
    await asked.done
    router.check(0.0)
    assert group.links[0].retired
    await eventually(lambda: group.links[0].up is False)


@over(1)
async def test_a_replica_no_longer_wanted_that_has_no_calls_is_let_go_of_at_the_next_look(router, replicas, group):
    await eventually(lambda: group.links[0].up)
    router.keep([])
    router.check(0.0)
    assert (group.links[0].retired, group.links[0].up) == (True, False)


@over(2)
async def test_a_call_admitted_before_goes_to_those_that_serve_since(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    before, since = (router.group([replica.endpoint]) for replica in replicas)
    before.newer = since
    router.keep([replicas[1].endpoint])
    router.check(0.0)
    asked = await ask(router, before)
    await asked.done
    assert (len(replicas[0].calls()), len(replicas[1].calls())) == (0, 1)


@over(2)
async def test_a_group_is_gone_once_all_its_replicas_have_left_the_routes(router, replicas, group):
    assert not group.gone  # about to be connected
    await eventually(lambda: all(link.up for link in group.links))
    router.keep([replicas[1].endpoint])
    assert not group.gone
    asked = Asked(group, 1)
    group.links[1].send(asked)
    router.keep([])
    assert group.up
    assert group.gone, "what still ends its calls takes no more"
    await asked.done


@over(2)
async def test_a_replica_that_does_not_answer_is_taken_last(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    group.links[1]._heard -= 60
    assert group.links[1].load > group.links[0].load
    router.check(0.0)
    await eventually(lambda: group.links[1].load == (0, 0))


@over(4)
async def test_replicas_are_asked_one_after_another(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    asked = lambda: sum(isinstance(frame, HealthFrame) for replica in replicas for frame in replica.got)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROUND", 2.0)
        router.check(0.0)
    await eventually(asked)
    assert asked() < 4
    await eventually(lambda: asked() == 4)
    router.close()
    router.check(0.0)  # those that are gone by then are asked nothing
    await asyncio.sleep(0.5)
    assert asked() == 4


@over(1)
async def test_what_a_replica_counted_is_passed_on_and_its_state_is_told(router, replicas, group):
    [link] = group.links
    assert link.state == "connecting"
    told = []
    router.told = lambda token, stats: told.append((token, stats))
    await eventually(lambda: link.up)
    replicas[0].answers = lambda channel, frame: channel.send(HealthFrame(frame.seq, "ready", stats={"batches": 7}))
    router.check(0.0)
    await eventually(lambda: told)
    assert told == [("r0", {"batches": 7})]
    assert link.state == "ready"
    replicas[0].answers = lambda channel, frame: channel.send(HealthFrame(frame.seq, "failed"))
    router.check(0.0)
    await eventually(lambda: link.state == "draining")
    link._heard -= 60
    assert link.state == "silent"
    await replicas[0].die()
    await eventually(lambda: link.state == "lost")


@over(1)
async def test_what_does_not_fit_a_frame_is_refused_and_was_never_sent(router, replicas, group):
    [link] = group.links
    asked = Asked(group, 1)
    asked.frame = call(1, b"x" * (56 << 10), head={"traceparent": "1" * 20_000})
    router.send(asked)
    assert asked.events == [("ended", 0, "invalid_request")]
    assert not link.calls
    after = await ask(router, group, 2)
    await after.done
    assert after.events == [("part", b"r0"), ("ended", 1, None)]
    assert replicas[0].calls() == [2]


@pytest.mark.parametrize("usage", [Usage(1 << 63), Usage(-1), Usage(0, -5), Usage(0, 1 << 62)])
def test_a_replica_that_says_what_cannot_have_been_used_is_not_believed(tmp_path, usage):
    @over(2)
    async def run(router, replicas, group):
        await eventually(lambda: all(link.up for link in group.links))
        replicas[0].answers = lambda channel, frame: channel.send(EndFrame(frame.id, usage, 0))
        asked = [await ask(router, group, number) for number in range(4)]
        await asyncio.gather(*(one.done for one in asked))
        assert all(one.events == [("part", b"r1"), ("ended", 1, None)] for one in asked)
        assert list(router.distrusted) == ["r0"]
        assert group.links[0].state == "lost"
        before = len(replicas[0].calls())
        for number in range(10, 15):
            await (await ask(router, group, number)).done
        router.check(0.0)
        await asyncio.sleep(2 * module.FIRST_RETRY)
        assert len(replicas[0].calls()) == before
        assert len(replicas[0].channels) == 1

    run(tmp_path)


@over(1)
async def test_more_than_the_grant_is_not_booked_and_counts_as_a_lie(router, replicas, group):
    replicas[0].answers = lambda channel, frame: channel.send(EndFrame(frame.id, Usage(11, 5), 0))
    asked = Asked(group, 1)
    asked.frame = call(1, grant=10)
    router.send(asked)
    await asked.done
    assert asked.events == [("ended", 10, None)]
    assert "more than the 10 units" in router.distrusted["r0"]
    later = await ask(router, group, 2)
    assert later.events == [("ended", 0, "unavailable")]


@over(1)
async def test_more_is_granted_where_there_is_a_grant_and_not_for_ever(router, replicas, group):
    def more(channel, frame):
        if isinstance(frame, CallFrame):
            channel.send(MoreFrame(frame.id, 100))

    replicas[0].answers = more
    asked = Asked(group, 5)
    asked.frame = call(5, grant=10)
    router.send(asked)
    await eventually(lambda: len(replicas[0].got) == 2)
    assert (replicas[0].got[1].id, replicas[0].got[1].units, asked.frame.grant) == (5, 100, 110)
    for _ in range(10_000):
        replicas[0].channels[0].send(MoreFrame(5, 1))
    await eventually(lambda: router.distrusted)
    replicas[0].channels[0].send(EndFrame(5, Usage(111, 5), 0))
    await asked.done
    assert asked.events == [("ended", 111, None)]
    assert len(replicas[0].got) == 1 + module._MOST_EXTENSIONS


@pytest.mark.parametrize("number", [5, 6])
def test_more_of_what_has_no_bound_or_for_no_call_is_a_lie_and_not_answered(tmp_path, number):
    @over(1)
    async def run(router, replicas, group):
        replicas[0].answers = replicas[0].silent
        await ask(router, group, 5)
        await eventually(replicas[0].calls)
        for _ in range(1000):
            replicas[0].channels[0].send(MoreFrame(number, 100))
        await eventually(lambda: router.distrusted)
        assert "asked for more" in router.distrusted["r0"]
        assert group.links[0]._channel.backlog == 0
        await asyncio.sleep(0.01)
        assert len(replicas[0].got) == 1

    run(tmp_path)


@over(1)
async def test_what_nobody_asked_tells_nothing_and_all_the_time_is_a_lie(router, replicas, group):
    [link] = group.links
    replicas[0].answers = replicas[0].silent
    await eventually(lambda: link.up and replicas[0].channels)
    link._heard -= 60
    for number in range(500):
        replicas[0].channels[0].send(HealthFrame(number, "ready"))
        replicas[0].channels[0].send(EndFrame(number, Usage(), 0))
    await eventually(lambda: link._strays == 1000)
    assert (link.state, router.distrusted) == ("silent", {})
    replicas[0].channels[0].send(PartFrame(7, 0, 0, b""))
    await eventually(lambda: router.distrusted)
    assert "more than 1,000 things" in router.distrusted["r0"]


@over(1)
async def test_a_replica_that_answers_nothing_is_not_asked_for_ever(router, replicas, group):
    replicas[0].answers = replicas[0].silent
    await eventually(lambda: group.links[0].up)
    asked_late = await ask(router, group, 3, deadline=50.0)
    for _ in range(100):
        router.check(60.0)
    await asyncio.sleep(0.01)
    kinds = Counter(type(frame) for frame in replicas[0].got)
    assert kinds == {CallFrame: 1, CancelFrame: 1, HealthFrame: module._MOST_QUESTIONS}
    assert asked_late.events == [("late", "timed_out")]
    for frame in replicas[0].got:
        replicas[0].echo(replicas[0].channels[0], frame)
    await eventually(lambda: not group.links[0]._questions)


@over(2)
async def test_a_replica_that_does_not_read_is_given_no_more(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links) and replicas[0].channels)
    replicas[0].channels[0]._transport.pause_reading()
    for _ in range(2):
        router.check(0.0)
    alone = router.group([replicas[0].endpoint])
    asked = [Asked(alone, number) for number in range(1000)]
    for one in asked:
        one.frame = call(one.frame.id, b"x" * 50_000)
        router.send(one)
    [link] = alone.links
    assert module.MOST_UNREAD <= link._channel.unread < module.MOST_UNREAD + 60_000
    refused = [one for one in asked if one.events]
    assert {event for one in refused for event in one.events} == {("ended", 0, "overloaded")}
    assert len(link.calls) + len(refused) == 1000
    router.again(asked[0], Fault("unavailable", "gone"))  # what it holds goes to others, as ever
    both = Asked(group, 2000)
    group.links[1].depth = 2000
    router.send(both)
    assert not both.retried  # it went at once to who has room
    await both.done
    assert both.events == [("part", b"r1"), ("ended", 1, None)]


def test_a_replica_that_is_not_connected_for_long_is_given_no_more(tmp_path, monkeypatch):
    async def scenario():
        connected = asyncio.Event()

        async def slow(loop, protocol, address, identity):
            await connected.wait()
            return await real(loop, protocol, address, identity)

        real = module.dial
        monkeypatch.setattr(module, "dial", slow)
        replica, router = await Replica("r", tmp_path / "r.sock").start(), Router(asyncio.get_running_loop())
        group = router.group([replica.endpoint])
        for _ in range(2):
            router.check(0.0)
        asked = [Asked(group, number) for number in range(1000)]
        for one in asked:
            one.frame = call(one.frame.id, b"x" * 50_000)
            router.send(one)
        [link] = group.links
        assert link.state == "connecting"
        assert module.MOST_UNREAD <= link._channel.unread < module.MOST_UNREAD + 60_000
        refused = [one for one in asked if one.events]
        assert {event for one in refused for event in one.events} == {("ended", 0, "overloaded")}
        connected.set()
        await asyncio.gather(*(one.done for one in asked))
        assert sum(one.events[-1] == ("ended", 1, None) for one in asked) == 1000 - len(refused)
        await eventually(lambda: not link._questions)
        router.close()
        await replica.die()
        await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(scenario(), 20))


@over(1)
async def test_a_replica_that_reads_is_given_however_much_comes_in_one_turn(router, replicas, group):
    [link] = group.links
    for up in (None, True):
        assert link.up is up
        asked = [Asked(group, number) for number in range(1000)]
        for one in asked:
            one.frame = call(one.frame.id, b"x" * 50_000)
            router.send(one)
        await asyncio.gather(*(one.done for one in asked))
        assert all(one.events[-1] == ("ended", 1, None) for one in asked)


@over(1)
async def test_only_so_many_calls_are_at_a_replica(router, replicas, group):
    replicas[0].answers = replicas[0].silent
    asked = [await ask(router, group, number) for number in range(module.MOST_CALLS + 1)]
    assert [one.events for one in asked if one.events] == [[("ended", 0, "overloaded")]]


@over(1)
async def test_of_a_refused_call_the_rest_of_the_body_is_not_sent(router, replicas, group):
    replicas[0].answers = replicas[0].refuse
    asked = Asked(group, 1)
    asked.frame = call(1, bytes(50 << 20))
    router.send(asked)
    await asked.done
    assert asked.events == [("ended", 0, "unavailable")]
    assert not group.links[0]._channel._bodies
    await asyncio.sleep(0.02)
    assert sum(len(frame.data) for frame in replicas[0].got) < 5 << 20


def test_what_was_given_back_when_nobody_was_reached_is_not_sent_later(tmp_path):
    async def run():
        replica, router = Replica("r", tmp_path / "r.sock"), Router(asyncio.get_running_loop())
        group = router.group([replica.endpoint])
        router.check(0.0)
        asked = await ask(router, group)
        await asyncio.wait_for(asked.done, 5)
        assert asked.events == [("ended", 0, "unavailable")]
        await replica.start()
        await eventually(lambda: group.links[0].up)
        assert not group.links[0]._questions
        await (await ask(router, group, 2)).done
        assert replica.calls() == [2]
        router.close()
        await replica.die()
        await asyncio.sleep(0.005)

    asyncio.run(run())


@over(1)
async def test_an_end_of_an_unknown_call_is_late_not_wrong(router, replicas, group):
    await (await ask(router, group)).done
    replicas[0].channels[0].send(EndFrame(99, Usage(), 0))
    replicas[0].channels[0].send(PartFrame(99, 0, 0, b""))
    assert (await ask(router, group, 2)) is not None


def test_a_group_without_replicas_answers(tmp_path):
    async def run():
        router = Router(asyncio.get_running_loop())
        asked = await ask(router, router.group([]))
        assert asked.events == [("ended", 0, "unavailable")]

    asyncio.run(run())


@pytest.mark.parametrize("given", [[Endpoint("a", "/nowhere/a.sock")]])
def test_an_address_nobody_listens_at(given):
    async def run():
        router = Router(asyncio.get_running_loop())
        asked = await ask(router, router.group(given))
        await asyncio.wait_for(asked.done, 5)
        assert asked.events == [("ended", 0, "unavailable")]
        router.close()
        await asyncio.sleep(0)

    asyncio.run(run())


def test_deadlines_are_told_by_the_clock_of_a_replica_on_another_machine(tmp_path, monkeypatch):
    """Where its machine is five seconds ahead, and again after the connection was lost."""

    async def scenario():
        loop = asyncio.get_running_loop()

        async def ahead(loop, protocol, address, identity):
            await loop.create_unix_connection(lambda: protocol, address)
            return 5.0

        monkeypatch.setattr(module, "dial", ahead)
        replica = await Replica("r", tmp_path / "r.sock").start()
        router = Router(loop)
        group = router.group([replica.endpoint])
        await eventually(lambda: group.links[0].up)
        asked = Asked(group, 1, deadline=100.0)
        router.send(asked)
        await asked.done
        assert [frame.deadline for frame in replica.got if isinstance(frame, CallFrame)] == [105.0]
        assert asked.frame.deadline == 100.0
        router.close()
        await replica.die()
        await asyncio.sleep(0.005)

    asyncio.run(scenario())


@over(3)
async def test_a_call_whose_replicas_are_all_gone_goes_to_those_that_came_since(router, replicas, group):
    first, second, third = replicas
    old = router.group([first.endpoint, second.endpoint])
    for replica in (first, second):
        replica.answers = replica.silent
    await eventually(lambda: all(link.up for link in old.links))
    asked = Asked(old, 7)
    router.send(asked)
    await eventually(lambda: first.calls() or second.calls())
    old.newer = router.group([])
    old.newer.newer = router.group([third.endpoint])
    await second.die()
    await first.die()
    await asked.done
    assert asked.events == [("part", b"r2"), ("ended", 1, None)]


def asked(replica):
    return [frame.state for frame in replica.got if isinstance(frame, HealthFrame)]


@over(2)
async def test_a_replica_is_told_whether_others_share_its_machine(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    router.check(0.0)
    await eventually(lambda: asked(replicas[0]) == asked(replicas[1]) == ["shared"])
    await replicas[1].die()
    await eventually(lambda: group.links[1].up is False)
    router.check(0.0)
    await eventually(lambda: asked(replicas[0]) == ["shared", "alone"])


@over(2)
async def test_what_is_on_another_machine_shares_nothing(router, replicas, group):
    await eventually(lambda: all(link.up for link in group.links))
    group.links[1].machine = "elsewhere"
    router.check(0.0)
    await eventually(lambda: asked(replicas[0]) == asked(replicas[1]) == ["alone"])
