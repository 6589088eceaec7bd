"""How many replicas, and who gives way: functions of numbers, and the promises they keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.scaling import CALLS, Demand, Holder, Load, Loads, Room, guess, make_room, scale
from modelyard.serving.types import Options

GIB = 1 << 30


def demand(replicas=1, rising=0.0, falling=0.0, us_a_row=None, *, quiet=0.0, whole=True, known=True, **more):
    return Demand(replicas, quiet, Load(rising, falling, us_a_row, known=known, **more), whole)


def options(least=1, most=8, **more):
    return Options(min_replicas=least, max_replicas=most, **more)


def test_it_grows_with_what_is_outstanding_and_shrinks_when_that_has_been_little_for_a_while():
    assert scale(demand(2, rising=3.5 * CALLS, falling=3.5 * CALLS), options()) == 4
    assert scale(demand(1, rising=100 * CALLS, falling=100 * CALLS), options()) == 2  # at most twice as many at a time
    assert scale(demand(4, rising=0, falling=3.5 * CALLS), options()) == 4
    assert scale(demand(4, rising=0, falling=CALLS), options()) == 1


def test_a_latency_target_says_how_many_calls_a_replica_may_hold():
    asked = options(latency_target=0.02)
    assert scale(demand(2, rising=12, falling=12, us_a_row=5000), asked) == 3
    assert scale(demand(2, rising=12, falling=12, us_a_row=100), asked) == 1
    assert (
        scale(demand(1, rising=3, falling=3, us_a_row=1e6), asked) == 2
    )  # a target that cannot be met asks for no more than one each


def test_what_is_refused_for_the_target_is_asked_for_too():
    """At 10 ms a row and a target of 0.1 s a replica holds ten calls at most, and does a hundred a second."""
    asked, full = options(latency_target=0.1), {"rising": 9.0, "falling": 10.0, "us_a_row": 10_000}
    assert scale(demand(1, **full), asked) == 1
    assert scale(demand(1, **full, offered=150.0), asked) == 2
    assert scale(demand(2, **full, offered=250.0), asked) == 4
    assert scale(demand(8, **full, offered=5000.0, refused=True), asked) == 8
    assert scale(demand(1, offered=1e6, us_a_row=10_000), options()) == 1  # without a target what is outstanding tells


def asked_of(calls, rows=0.0, **more):
    return Load(calls, calls, 500.0, rows, rows, **more)


@pytest.mark.parametrize(
    ("stable", "canary", "share", "all_calls"),
    [
        (30, 30, 50, 60),
        (6, 54, 90, 60),
        (42, 18, 30, 60),
        (3, 57, 90, 30),  # it takes longer than the stable release
        (1, 59, 99, 60),  # one call more or less at the stable release says little
        (60, 0, 50, 60),  # before it began
    ],
)
def test_what_a_canary_is_asked_counts_and_no_more_for_being_slow(stable, canary, share, all_calls):
    found = asked_of(stable, 10.0 * stable).beside(asked_of(canary, 10.0 * canary, known=True), share)
    assert found == asked_of(all_calls, 10.0 * all_calls)


def test_where_a_canary_was_not_seen_its_share_says_what_there_was():
    found = asked_of(30, 300.0).beside(Load(), 50)
    assert (found.rising, found.offered, found.falling, found.lasting) == (30, 300, 60, 600)
    assert scale(Demand(8, 0.0, found), options()) == 8
    assert asked_of(30).beside(Load(strained=True, known=True), 50).strained


def test_where_all_refuse_there_is_one_more_whatever_was_measured():
    asked, full = options(latency_target=0.1), {"rising": 9.0, "falling": 10.0, "us_a_row": 10_000}
    assert scale(demand(2, **full, refused=True), asked) == 3
    assert scale(demand(2, **full, refused=True, strained=True, whole=False), asked) == 2
    assert scale(demand(1, refused=True), options()) == 2


def test_it_does_not_shrink_to_what_would_refuse():
    asked, calm = options(latency_target=0.1), {"rising": 2.0, "falling": 8.0, "us_a_row": 10_000}
    assert scale(demand(2, **calm, offered=150.0, lasting=150.0), asked) == 2
    assert scale(demand(2, **calm, strained=True), asked) == 2
    assert scale(demand(2, **calm, offered=70.0, lasting=70.0), asked) == 1


def test_it_does_not_shrink_before_half_a_minute_was_watched():
    assert scale(demand(4, rising=1)._replace(watched=False), options()) == 4
    assert scale(demand(4, rising=9 * CALLS)._replace(watched=False), options(most=6)) == 6
    assert scale(demand(4, rising=1)._replace(watched=False), options(most=3)) == 3


def test_it_sleeps_after_a_while_without_a_call_and_only_a_call_wakes_it():
    asked = options(0, 4, idle=60)
    assert scale(demand(1, quiet=61), asked) == 0
    assert scale(demand(1, quiet=61, rising=1, falling=1), asked) == 1  # somebody waits
    assert scale(demand(1, quiet=61, falling=8), asked) == 0  # somebody waited half a minute ago
    assert scale(demand(1, quiet=61, known=False), asked) == 1  # nobody looked
    assert scale(demand(1, quiet=59), asked) == 1
    assert scale(demand(0, quiet=0), asked) == 0
    assert scale(demand(0), options(2)) == 2  # it may not sleep any more


loads = st.builds(
    Load,
    st.floats(0, 1e4),
    st.floats(0, 1e4),
    st.none() | st.floats(1, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(
    st.builds(Demand, st.integers(0, 64), st.floats(0, 1e5), loads, st.booleans()),
    st.integers(0, 64),
    st.integers(1, 64),
    st.none() | st.floats(0.001, 10),
)
def test_it_stays_within_what_was_asked_for(told, least, most, target):
    asked = options(min(least, most), most, latency_target=target)
    wanted = scale(told, asked)
    assert wanted == 0 or max(1, asked.min_replicas) <= wanted <= most
    assert wanted or (asked.min_replicas == 0 and (told.replicas == 0 or (told.load.known and told.load.rising == 0)))


@given(st.lists(st.tuples(st.floats(0.01, 5), *[st.integers(0, 100)] * 3), min_size=1, max_size=60))
def test_loads_forget_what_is_long_past(steps):
    loads, at = Loads(), 0.0
    seen = []
    for wait, *counts in steps:
        at += wait
        loads.add(at, *counts)
        seen.append((at, *counts))
    load = loads.at(at, 5.0)
    kept = [one for one in seen if one[0] >= at - 30]
    recent = [one for one in seen if one[0] >= at - 2]
    assert load.falling == max(calls for _, calls, *_ in kept)
    assert load.rising == pytest.approx(sum(calls for _, calls, *_ in recent) / len(recent))
    rates = [sum(d + r for then, _, d, r in seen if moment - 2 <= then <= moment) / 2 for moment, *_ in kept]
    assert (load.offered, load.lasting) == (rates[-1], max(rates))
    assert (load.refused, load.strained) == tuple(any(refused for *_, refused in some) for some in (recent, kept))
    assert load.us_a_row == 5.0
    assert load.known
    assert not loads.at(at + 2.1).known


def test_who_did_not_answer_lately_is_not_known_to_do_nothing():
    loads = Loads()
    assert not loads.at(0.0).known
    loads.add(0.0, 0, whole=False)
    loads.add(2.0, 0)
    assert [loads.at(now).known for now in (2.0, 2.1, 4.1)] == [False, True, False]


def holder(key, memory=GIB, used=0.0, yields=True, replicas=1):
    return Holder(key, memory, replicas, used, yields)


def test_the_least_recently_used_gives_way_and_no_more_than_are_needed():
    held = [holder(1, used=3), holder(2, used=1), holder(3, used=2, yields=False), holder(4, used=2)]
    assert make_room(GIB, Room(5 * GIB, 0), held) == []
    assert make_room(GIB, Room(4 * GIB, 0), held) == [2]
    assert make_room(GIB, Room(0, 3), held) == [2, 4]
    assert make_room(GIB, Room(GIB, 0), held) is None
    assert make_room(GIB, Room(0, 0), held) == []


@given(
    st.integers(1, 100),
    st.builds(Room, st.integers(0, 300), st.integers(0, 20)),
    st.lists(
        st.builds(Holder, st.integers(), st.integers(0, 100), st.integers(1, 4), st.floats(0, 10), st.booleans()),
        unique_by=lambda one: one.deployment,
        max_size=8,
    ),
)
def test_room_is_made_where_it_can_be_from_those_alone_that_yield(need, room, held):
    asleep = make_room(need, room, held)
    known = {one.deployment: one for one in held}
    staying = [one for one in held if one.deployment not in (asleep or ())]

    def fits(ones, spare=0):
        memory, replicas = sum(one.memory for one in ones) + need, sum(one.replicas for one in ones) + 1 + spare
        return (not room.memory or memory <= room.memory) and (not room.replicas or replicas <= room.replicas)

    if asleep is None:
        assert not fits([one for one in held if not one.yields])
        return
    assert all(known[key].yields for key in asleep)
    assert fits(staying)
    if asleep:  # the last one was needed
        spare = room.spare if fits([one for one in held if not one.yields], room.spare) else 0
        assert not fits([*staying, known[asleep[-1]]], spare)
        assert max(known[key].used for key in asleep) <= min((o.used for o in staying if o.yields), default=10)


def test_there_is_a_spare_for_who_is_called_next():
    held = [holder(key, used=key) for key in range(15)]
    assert Room(0, 16).spare == 2
    assert make_room(GIB, Room(0, 16), held[:13]) == []
    assert make_room(GIB, Room(0, 16), held[:14]) == [0]
    assert make_room(GIB, Room(0, 16), held) == [0, 1]
    fixed = [holder(key, yields=False) for key in range(14)]
    assert make_room(GIB, Room(0, 16), fixed) == []  # whoever may not sleep takes the spare too
    assert make_room(GIB, Room(0, 16), [*fixed, held[14]]) == []  # and then nobody sleeps for it


def test_before_it_was_measured_a_replica_is_taken_for_its_weights_twice_and_a_python():
    assert guess(100 << 20) == (96 << 20) + (200 << 20)
