"""Calls that wait for a deployment to wake: held, told once, and asked for not too often."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from serving_gateway_fakes import KEY, Bench, FakeFollower, record, route

from modelyard.errors import Asleep, Unauthorized
from modelyard.serving import sleepers
from modelyard.serving.follower import State
from modelyard.serving.front import fresh
from modelyard.serving.sleepers import Sleepers
from modelyard.serving.types import DeploymentState

URL = b"/v2/models/digits/infer"
GOOD = ((b"authorization", b"Bearer " + KEY.encode()),)
SLEEPS = {"state": DeploymentState.asleep, "endpoints": (), "wakes": True}


class Call:
    def __init__(self, began=None):
        self.began, self.credentials, self.leave = began or time.time(), GOOD, None


def run(scene):
    return asyncio.run(scene())


def test_a_call_is_held_until_a_replica_is_there_and_control_is_asked_once():
    async def scene():
        held, asked, told = Sleepers(), [], []
        held.waker = lambda route, credentials: asked.append((route.deployment, credentials))
        for number in range(3):
            held.hold(route(**SLEEPS), GOOD, 5.0, lambda number=number: told.append(number))
        assert held.any
        held.look(lambda name: route(state=DeploymentState.pending, endpoints=(), wakes=True))
        assert told == []
        held.look(lambda name: route())
        await asyncio.sleep(0)
        assert told == [0, 1, 2]
        held.look(lambda name: route())
        assert (told, asked, held.any) == ([0, 1, 2], [("digits", GOOD)], False)

    run(scene)


@pytest.mark.parametrize("found", [None, {"state": DeploymentState.failed, "endpoints": ()}])
def test_where_nothing_will_wake_nobody_waits(found):
    async def scene():
        held, told = Sleepers(), []
        held.hold(route(**SLEEPS), GOOD, 5.0, lambda: told.append(1))
        held.look(lambda name: None if found is None else route(**found))
        await asyncio.sleep(0)
        assert told == [1]

    run(scene)


def test_patience_ends_and_is_told_once():
    async def scene():
        held, told = Sleepers(), []
        held.hold(route(**SLEEPS), GOOD, 0.01, lambda: told.append(1))
        await asyncio.sleep(0.05)
        held.look(lambda name: route(**SLEEPS))
        assert (told, held.any) == ([1], False)
        held.look(lambda name: route())
        assert told == [1]

    run(scene)


def test_what_one_that_is_let_go_raises_is_no_others():
    async def scene():
        held, told, raised = Sleepers(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        for number in (1, 0, 2):
            held.hold(route(**SLEEPS), GOOD, 5.0, lambda number=number: told.append(2 // number))
        held.look(lambda name: route())
        await asyncio.sleep(0)
        assert told == [2, 1]
        assert [type(error) for error in raised] == [ZeroDivisionError]

    run(scene)


def test_control_is_asked_again_after_a_while(monkeypatch):
    async def scene():
        held, asked = Sleepers(), []
        held.waker = lambda *_: asked.append(1)
        for _ in range(3):
            held.hold(route(**SLEEPS), GOOD, 5.0, lambda: None)
        monkeypatch.setattr(sleepers, "AGAIN", 0.0)
        held.hold(route(**SLEEPS), GOOD, 5.0, lambda: None)
        assert len(asked) == 2

    run(scene)


def test_only_so_many_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sleepers, "MOST", 4)

    async def scene():
        bench = Bench(tmp_path, routes=[route(**SLEEPS)])
        refusal = _refused(bench)
        for _ in range(2):
            assert bench.gateway.may_wake(refusal, Call())
            bench.gateway.sleepers.hold(refusal.of, GOOD, 5.0, lambda: None)
        assert not bench.gateway.may_wake(refusal, Call())
        bench.gateway.sleepers.look(lambda name: route())
        assert bench.gateway.may_wake(refusal, Call())
        assert not bench.gateway.may_wake(refusal, Call(time.time() - 1e6))

    run(scene)


def test_one_project_leaves_room_for_the_calls_of_others(monkeypatch):
    monkeypatch.setattr(sleepers, "MOST", 12)

    async def scene():
        held = Sleepers()

        def fill(project):
            """Hold what there is room for, of two deployments."""
            count = 0
            while held.room(sleeper := route(f"d{count % 2}", project, **SLEEPS), GOOD):
                held.hold(sleeper, GOOD, 5.0, lambda: None)
                count += 1
            return count

        assert [fill("a"), fill("b"), fill("c")] == [6, 3, 2]
        held.look(lambda name: None if name[0] == "a" else route(project=name[0], **SLEEPS))
        assert [fill("b"), fill("c")] == [2, 2], "five and four of twelve"

    run(scene)


def test_what_there_is_no_room_to_wait_for_is_woken_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(sleepers, "MOST", 1)

    async def scene():
        bench, asked = Bench(tmp_path, routes=[route(**SLEEPS)]), []
        bench.gateway.sleepers.hold(route("other", **SLEEPS), GOOD, 5.0, lambda: None)
        bench.gateway.sleepers.waker = lambda route, credentials: asked.append((route.deployment, credentials))
        for _ in range(3):
            with pytest.raises(Asleep):
                await fresh(bench.gateway, GOOD, bench.gateway.admit, URL, GOOD, time.time())
        assert asked == [("digits", GOOD)]

    run(scene)


def test_who_leaves_gives_the_place_up(tmp_path):
    async def scene():
        bench, told = Bench(tmp_path, routes=[route(**SLEEPS)]), []
        held = bench.gateway.sleepers
        ask = asyncio.ensure_future(fresh(bench.gateway, GOOD, bench.gateway.admit, URL, GOOD, time.time()))
        await asyncio.sleep(0)
        assert held.any
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        assert not held.any
        leave = [held.hold(route(**SLEEPS), GOOD, 5.0, lambda number=number: told.append(number)) for number in range(3)]
        leave[0]()
        held.look(lambda name: route())
        leave[1]()
        await asyncio.sleep(0)
        leave[2]()
        assert (told, held.any) == ([2], False)

    run(scene)


def test_where_there_is_no_room_a_call_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sleepers, "MOST", 4)

    async def scene():
        bench = Bench(tmp_path, routes=[route(**SLEEPS)])
        ask = partial(fresh, bench.gateway, GOOD, bench.gateway.admit, URL, GOOD, time.time())
        waiting = [asyncio.ensure_future(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Asleep, match="is not awake yet"):
            await ask()
        assert not any(one.done() for one in waiting)
        bench.gateway.apply(State(2, [record()], [route()]))
        assert all(await asyncio.gather(*waiting))

    run(scene)


def _refused(bench: Bench) -> Asleep:
    with pytest.raises(Asleep) as caught:
        bench.gateway.admit(URL, GOOD, time.time())
    return caught.value


def test_a_gateway_lets_go_of_who_waits_when_it_learns_of_a_replica(tmp_path):
    async def scene():
        bench, told = Bench(tmp_path, routes=[route(**SLEEPS)]), []
        bench.gateway.follow(FakeFollower())
        bench.gateway.wait(_refused(bench), Call(), told.append)
        keys = [record()]
        bench.gateway.apply(State(2, keys, [route()]))
        await asyncio.sleep(0)
        assert told == [True]
        assert bench.gateway.admit(URL, GOOD, time.time()) is not None

    run(scene)


def test_who_has_no_key_wakes_nobody(tmp_path):
    bench = Bench(tmp_path, routes=[route(**SLEEPS)])
    with pytest.raises(Unauthorized):
        bench.gateway.admit(URL, (), time.time())


def test_who_is_put_to_sleep_again_while_calls_wait_is_woken_again(monkeypatch):
    monkeypatch.setattr(sleepers, "AGAIN", 0.05)
    late = ((b"authorization", b"Bearer another"),)

    async def scene():
        held, asked = Sleepers(), []
        held.waker = lambda route, credentials: asked.append(credentials)
        held.hold(route(**SLEEPS), GOOD, 0.02, lambda: None)
        held.hold(route(**SLEEPS), late, 5.0, lambda: None)
        held.look(lambda name: route(**SLEEPS))
        assert asked == [GOOD]
        await asyncio.sleep(0.06)
        held.look(lambda name: route(state=DeploymentState.pending, endpoints=(), wakes=True))
        assert asked == [GOOD]
        held.look(lambda name: route(**SLEEPS))
        held.look(lambda name: route(**SLEEPS))
        assert asked == [GOOD, late]  # by the key of one that still waits

    run(scene)


@pytest.mark.parametrize("found", [SLEEPS, {"state": DeploymentState.pending, "endpoints": (), "error": "no room"}])
def test_control_is_asked_by_each_key_in_turn_until_a_replica_is_there(monkeypatch, found):
    """One may be revoked; and beside a release that has no room the one before may wake."""
    monkeypatch.setattr(sleepers, "AGAIN", 0.0)
    keys = [((b"authorization", b"Bearer %d" % number),) for number in range(3)]

    async def scene():
        held, asked = Sleepers(), []
        for key in (keys[0], keys[0], *keys):
            held.hold(route(**SLEEPS), key, 5.0, lambda: None)
        held.waker = lambda _, credentials: asked.append(credentials)
        for _ in range(6):
            held.look(lambda name: route(**found))
        assert asked == [*keys, *keys]

    run(scene)
