"""A release on trial in a gateway: exact shares, what is compared, copies and what becomes of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from serving_gateway_fakes import KEY, Bench, record, route

from modelyard.errors import NotFound
from modelyard.serving.copies import COMPARE, Compared
from modelyard.serving.exchange import Exchange
from modelyard.serving.follower import State
from modelyard.serving.frames import EndFrame, Fault, Usage
from modelyard.serving.metrics import exposition
from modelyard.serving.trials import COPIES
from modelyard.serving.types import Endpoint, Trial, TrialKind
from modelyard.serving.verdict import Policy, Tally

URL = b"/v2/models/digits/infer"
GOOD = ((b"authorization", b"Bearer " + KEY.encode()),)


def trial(kind: TrialKind = TrialKind.canary, share: int = 20, **fields: Any) -> Trial:
    given: dict[str, Any] = {"id": 7, "generation": 2, "model": "cnn", "version": "4", "policy": Policy()}
    return Trial(kind, share=share, **{**given, "endpoints": (Endpoint("u", "/there"),), **fields})


def bench(folder: Any, tried: Trial) -> Bench:
    made = Bench(folder)
    made.gateway.apply(State(2, [record()], [route(trial=tried)]))
    return made


class Connection:
    """Keeps what is answered; its clock moves by hand."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.answers: list[tuple[int, bytes]] = []

    def now(self) -> float:
        return self.clock

    def answer(self, exchange: Exchange, status: int, head: Any, body: bytes | bytearray) -> None:
        self.answers.append((status, bytes(body)))

    def pass_on(self, exchange: Exchange, head: Any, data: bytes, last: bool) -> None: ...


def call(made: Bench, connection: Connection, body: bytes = b"{}") -> Exchange:
    exchange = Exchange(made.gateway, connection, URL, GOOD, 1e9, connection.now())
    exchange.admission = made.gateway.admit(URL, GOOD, 1e9)
    exchange.body, exchange.whole = body, True
    exchange.send()
    return exchange


@pytest.mark.parametrize("share", [1, 20, 33, 99])
def test_of_any_hundred_calls_the_canary_has_its_share(tmp_path, share):
    gateway = bench(tmp_path, trial(share=share)).gateway
    versions = [gateway.admit(URL, GOOD, 1e9).version for _ in range(300)]
    for start in range(200):
        assert abs(versions[start : start + 100].count("4") - share) <= 1
    assert versions.count("4") == 3 * share


def test_a_version_asked_for_by_its_number_is_no_trial(tmp_path):
    gateway = bench(tmp_path, trial()).gateway
    for version in ("3", "4"):
        url = b"/v2/models/digits/versions/%b/infer" % version.encode()
        admissions = [gateway.admit(url, GOOD, 1e9) for _ in range(10)]
        assert {a.version for a in admissions} == {version}
        assert all(a.outcome is None and a.canary is None for a in admissions)
    with pytest.raises(NotFound):
        gateway.admit(b"/v2/models/digits/versions/5/infer", GOOD, 1e9)


def test_another_model_with_the_same_number_is_told_apart_by_its_name(tmp_path):
    gateway = bench(tmp_path, trial(model="rnn", version="3")).gateway
    [found] = gateway.routes("team")
    assert found.versions == ("3", "rnn@3")
    stable, cells = gateway._groups["team", "digits"], gateway.metrics._cells
    for version, counted in (("3", "3"), ("cnn@3", "3"), ("rnn@3", "rnn@3"), ("rnn%403", "rnn@3")):
        admission = gateway.admit(f"/v2/models/digits/versions/{version}/infer".encode(), GOOD, 1e9)
        assert (admission.group is stable) == (counted == "3")
        assert admission.cell is cells["team", "digits", counted]
        assert admission.outcome is None
    for admission in (gateway.admit(URL, GOOD, 1e9) for _ in range(9)):
        assert admission.cell is cells["team", "digits", "3" if admission.group is stable else "rnn@3"]
    with pytest.raises(NotFound):
        gateway.admit(b"/v2/models/digits/versions/rnn@4/infer", GOOD, 1e9)


def test_answers_from_memory_are_those_of_the_same_model_and_compare_nothing(tmp_path):
    made, connection = Bench(tmp_path), Connection()
    for identity in ("cnn@3 onnx a", "rnn@3 onnx b"):
        made.gateway.apply(State(2, [record()], [route(cache=True, identity=identity)]))
        made.router.answer(call(made, connection), identity.encode())
        sent = len(made.router.sent)
        call(made, connection)
        assert len(made.router.sent) == sent
        assert connection.answers[-1] == (200, identity.encode())
    tried = trial(share=50)
    made.gateway.apply(State(3, [record()], [route(cache=True, identity="rnn@3 onnx b", trial=tried)]))
    before = len(made.router.sent)
    for _ in range(100):
        exchange = call(made, connection)
        if made.router.sent and made.router.sent[-1] is exchange:  # the canary's
            connection.clock += 0.1
            made.router.answer(exchange)
    assert len(made.router.sent) == before + 50
    [seen] = made.gateway.observed()
    assert seen.evidence.latency == Tally()


def test_outcomes_of_both_are_compared_and_told_once(tmp_path):
    made, connection = bench(tmp_path, trial(share=50)), Connection()
    for number in range(100):
        exchange = call(made, connection)
        if exchange.frame.version == "4" and number > 60:
            made.router.fail(exchange, "internal")
        else:
            made.router.answer(exchange)
    [seen] = made.gateway.observed()
    assert (seen.deployment, seen.generation, seen.share, seen.calls) == (7, 2, 50, 50)
    assert seen.evidence.errors.n == seen.evidence.errors.k > 10
    assert made.gateway.observed() == []
    counted = sum(slot.calls for slot in made.counted())
    assert counted == 100


def test_what_is_refused_for_too_much_work_says_nothing_of_a_release(tmp_path):
    made, connection = bench(tmp_path, trial(share=50)), Connection()
    for _ in range(10):
        made.router.fail(call(made, connection), "overloaded")
    assert made.gateway.observed() == []


def test_a_shadow_is_given_copies_and_its_answers_go_nowhere(tmp_path):
    made, connection = bench(tmp_path, trial(TrialKind.shadow, share=50)), Connection()
    for _ in range(10):
        made.router.answer(call(made, connection, b"question"), b"answer")
    assert [answer for _, answer in connection.answers] == [b"answer"] * 10
    copies = [sent for sent in made.router.sent if not isinstance(sent, Exchange)]
    assert len(copies) == 5
    frame = copies[0].frame
    assert (frame.verb, frame.version, frame.data) == (COMPARE, "4", b"questionanswer")
    assert frame.head["x-answer-size"] == "6"
    for number, copy in enumerate(copies):
        copy.part(msgspec.json.encode(Compared(4, 4 * (number % 2))), None)
        copy.ended(EndFrame(copy.frame.id, Usage(4, 9), 0).usage, None)
    [seen] = made.gateway.observed()
    assert (seen.calls, seen.evidence.agreement) == (5, Tally(5, 2))
    assert sorted(slot.calls for slot in made.counted()) == [0, 10]
    assert [slot.units for slot in made.counted() if slot.calls == 0] == [20]


def test_a_shadow_that_fails_or_says_nonsense_is_counted_and_harms_nobody(tmp_path):
    made, connection = bench(tmp_path, trial(TrialKind.shadow, share=100)), Connection()
    for said in (b"not json", b"[1]", b'[3,"x"]', b"[3,-1]", b"[3,99]"):
        made.router.answer(call(made, connection))
        copy = made.router.sent[-1]
        copy.part(said, None)
        copy.ended(Usage(), None)
    made.router.answer(call(made, connection))
    made.router.sent[-1].ended(Usage(), Fault("internal", "broken"))
    made.router.answer(call(made, connection))
    late = made.router.sent[-1]
    late.late(Fault("timed_out", "late"))
    late.ended(Usage(1, 1), Fault("cancelled", "late"))
    [seen] = made.gateway.observed()
    assert seen.calls == 7
    assert seen.evidence.agreement.n == 2
    assert seen.evidence.errors.k == 2


def test_of_what_a_shadow_says_without_end_little_is_kept(tmp_path):
    made, connection = bench(tmp_path, trial(TrialKind.shadow, share=100)), Connection()
    made.router.answer(call(made, connection))
    copy = made.router.sent[-1]
    for _ in range(100):
        copy.part(b"1" * 50_000, None)
    assert len(copy._said) < 100_000
    copy.ended(Usage(), None)
    assert made.gateway.observed()[0].evidence.agreement.n == 0


def test_what_is_left_of_an_answer_whose_client_went_away_is_kept_and_compared_by_nobody(tmp_path):
    made, connection = bench(tmp_path, trial(TrialKind.shadow, 100)), Connection()
    made.gateway.apply(State(3, [record()], [route(cache=True, trial=trial(TrialKind.shadow, 100))]))
    left = call(made, connection)
    left.part(b"first", None)
    left.abandon()
    for piece in (b"second", b"third"):
        left.part(piece, None)
    left.ended(Usage(1, 1), None)
    assert made.router.sent == [left]
    whole = call(made, connection)
    made.router.answer(whole, b"whole")
    assert connection.answers[-1] == (200, b"whole")
    assert len(made.router.sent) == 3  # with the copy
    call(made, connection)
    assert connection.answers[-1] == (200, b"whole")


def test_no_more_copies_are_under_way_than_there_is_room_for(tmp_path):
    made, connection = bench(tmp_path, trial(TrialKind.shadow, share=100)), Connection()
    for _ in range(COPIES + 10):
        made.router.answer(call(made, connection))
    copies = [sent for sent in made.router.sent if not isinstance(sent, Exchange)]
    assert len(copies) == COPIES
    copies[0].ended(Usage(), None)
    made.router.answer(call(made, connection))
    assert len([sent for sent in made.router.sent if not isinstance(sent, Exchange)]) == COPIES + 1


@pytest.mark.parametrize("kind", TrialKind)
def test_numbers_outlive_the_replicas_that_they_are_of(tmp_path, kind):
    made, connection = bench(tmp_path, trial(kind, share=50)), Connection()
    for _ in range(2):
        for _ in range(4):
            made.router.answer(call(made, connection))
            if (copy := made.router.sent[-1]) is not None and not isinstance(copy, Exchange):
                copy.ended(Usage(), None)
        made.gateway.apply(State(2, [record()], [route(trial=trial(kind, share=50, endpoints=()))]))
        sent = len(made.router.sent)
        for _ in range(4):  # the stable release answers all
            made.router.answer(call(made, connection))
        assert {one.frame.version for one in made.router.sent[sent:]} == {"3"}
        with pytest.raises(NotFound):
            made.gateway.admit(b"/v2/models/digits/versions/4/infer", GOOD, 1e9)
        made.gateway.apply(State(3, [record()], [route(trial=trial(kind, share=50))]))
    assert made.gateway.observed()[0].calls == 4


def test_numbers_outlive_a_change_of_routes_but_not_of_the_share(tmp_path):
    made, connection = bench(tmp_path, trial(share=50)), Connection()
    keys = [record()]
    for _ in range(4):
        made.router.answer(call(made, connection))
    made.gateway.apply(State(3, keys, [route(trial=trial(share=50))]))
    made.router.answer(call(made, connection))
    assert made.gateway.observed()[0].calls == 2
    made.gateway.apply(State(4, keys, [route(trial=trial(share=60))]))
    assert made.gateway.observed() == []


def test_replicas_and_calls_of_a_release_on_trial_are_in_the_metrics(tmp_path):
    made = bench(tmp_path, trial())
    made.router.link.depth = 5
    text = exposition([*made.gateway.metrics.families("team"), *made.gateway.tally.families("team")]).decode()
    for version in ("3", "4"):
        assert f'modelyard_queue_depth{{model="digits",project="team",version="{version}"}} 5.0' in text
        assert f'modelyard_replicas{{model="digits",project="team",state="ready",version="{version}"}} 1.0' in text


def test_a_trial_of_another_model_with_the_same_number_is_told_apart_in_every_metric(tmp_path):
    made, connection = bench(tmp_path, trial(model="other", version="3", share=50)), Connection()
    for _ in range(4):
        made.router.answer(call(made, connection))
    made.router.link.depth = 5
    families = [*made.gateway.metrics.families("team"), *made.gateway.tally.families("team")]
    text = exposition(families).decode()
    for version in ("3", "other@3"):
        labels = f'model="digits",project="team",version="{version}"'
        assert f"modelyard_queue_depth{{{labels}}} 5.0" in text
        assert f'modelyard_replicas{{model="digits",project="team",state="ready",version="{version}"}} 1.0' in text
        assert f"modelyard_call_seconds_count{{{labels}}} 2.0" in text


def test_what_a_cache_answered_is_counted_by_version(tmp_path):
    made, connection = Bench(tmp_path, routes=[route(cache=True), route("other")]), Connection()
    for number, body in enumerate((b"a", b"b", b"a", b"a")):
        exchange = call(made, connection, body)
        if number < 2:
            made.router.answer(exchange, b"{}")
    text = exposition(made.gateway.metrics.families("team")).decode()
    assert 'modelyard_cache_hits_total{model="digits",project="team",version="3"} 2.0' in text
    assert 'modelyard_cache_misses_total{model="digits",project="team",version="3"} 2.0' in text
    assert 'cache_hits_total{model="other"' not in text
