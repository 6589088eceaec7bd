"""Quotas in a gateway: whose buckets, what is taken from them, and what is said past them."""

from __future__ import annotations

import time

import pytest
from serving_gateway_fakes import KEY, Bench, record, route

from modelyard.errors import RateLimited
from modelyard.serving.follower import State
from modelyard.tenancy import door
from modelyard.tenancy.quota import Quota

URL = b"/v2/models/digits/infer"
GOOD = ((b"authorization", b"Bearer " + KEY.encode()),)


def bench(folder, key=None, project=None):
    """A gateway whose one key and one project have these quotas, and the moment it learned of them."""
    made = Bench(folder)
    learn(made, key, project)
    return made, time.time() + 0.01


def learn(made, key=None, project=None):
    made.gateway.apply(State(2, [record(quota=key)], [route()], {} if project is None else {"team": project}))


def admitted(made, moments):
    """Which of the calls at these moments were admitted."""
    found = []
    for at in moments:
        try:
            found.append(made.gateway.admit(URL, GOOD, at) is not None)
        except RateLimited:
            found.append(False)
    return found


def test_without_a_quota_nothing_is_counted(tmp_path):
    made, now = bench(tmp_path)
    assert made.gateway.admit(URL, GOOD, now).buckets is None
    assert all(admitted(made, [now] * 1000))


@pytest.mark.parametrize(("quotas", "of"), [({"key": Quota(2, 3)}, "key 'k1'"), ({"project": Quota(2, 3)}, "project 'team'")])
def test_past_a_quota_a_call_is_refused_by_its_name(tmp_path, quotas, of):
    made, now = bench(tmp_path, **quotas)
    assert admitted(made, [now] * 4) == [True, True, True, False]
    with pytest.raises(RateLimited) as caught:
        made.gateway.admit(URL, GOOD, now)
    assert caught.value.message == f"The quota of {of} is 2 calls a second, 3 at once; try again in 0.5 s."
    assert (door.status(caught.value), door.headers(caught.value)) == (429, {"Retry-After": "1"})
    assert admitted(made, [now + 0.4, now + 0.6, now + 0.9, now + 1.1]) == [False, True, False, True]


def test_retry_after_is_as_long_as_it_takes(tmp_path):
    made, now = bench(tmp_path, key=Quota(0.1, 1))
    assert admitted(made, [now])
    with pytest.raises(RateLimited) as caught:
        made.gateway.admit(URL, GOOD, now + 0.5)
    assert door.headers(caught.value) == {"Retry-After": "10"}


def test_a_call_that_one_quota_refuses_is_taken_from_none(tmp_path):
    made, now = bench(tmp_path, key=Quota(1, 10), project=Quota(1, 2))
    assert admitted(made, [now] * 10) == [True] * 2 + [False] * 8
    learn(made, key=Quota(1, 10))
    assert admitted(made, [now] * 9) == [True] * 8 + [False]


def test_what_was_taken_stays_taken_when_other_things_change(tmp_path):
    made, now = bench(tmp_path, key=Quota(1, 3))
    assert admitted(made, [now] * 3) == [True] * 3
    learn(made, key=Quota(1, 3))
    assert admitted(made, [now]) == [False]
    learn(made, key=Quota(1, 10))  # room for more, but none is given for it
    assert admitted(made, [now]) == [False]
    learn(made)
    assert admitted(made, [now] * 50) == [True] * 50


def test_quotas_of_others_are_nobody_elses(tmp_path):
    made, now = bench(tmp_path)
    made.gateway.apply(State(3, [record(), record("k2", quota=Quota(1, 1))], [route()], {"rival": Quota(1, 1)}))
    assert all(admitted(made, [now] * 10))
