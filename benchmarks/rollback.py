"""How often a trial release as good as the stable one is taken back, and how soon one that is worse: simulated calls.

Counted by the `Pairing` that a gateway counts with and judged as control judges, after every single call of the trial. The
10,000 runs without a fault have the same counts made by numpy, which is checked against `Pairing` first. Latencies are
log-normal about a load that drifts and that failures grow with; nothing is started and time is simulated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import Record, recording

from modelyard.serving.verdict import Evidence, Pairing, Policy, Signal, Tally, e_value, judge, stables

SEED = 5
MEDIAN_SECONDS, WARM = 0.005, 20
# How much of the load's logarithm stays from one call to the next, and how much comes anew: a deviation of 0.35 in all.
KEPT, ANEW = 0.98, 0.07
CHUNK = 250
Floats = NDArray[np.float32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Fault:
    """A trial release beside its stable one: how often each fails, how the trial's latencies and answers differ."""

    name: str
    base: float = 0.0
    errors: float = 0.0
    slowdown: float = 1.0
    spread: float = 0.3
    disagree: float = 0.0


FAULTS = (
    Fault("errors + 5 points, from 0 %", 0.0, errors=0.05),
    Fault("errors + 5 points, from 1 %", 0.01, errors=0.05),
    Fault("latency × 1.5", 0.005, slowdown=1.5),
    Fault("latency × 1.5, of twice the spread", 0.005, slowdown=1.5, spread=0.5),
    Fault("agreement - 10 points, from 100 %", 0.005, disagree=0.10),
    Fault("agreement - 10 points, from 99 %", 0.005, disagree=0.11),
)
# Recorded without a target: with one stable call for each of the trial, 500 are too few for any test (see `once`); and latency
# of such a spread is at the border.
BEYOND = {("half", "errors + 5 points, from 1 %"), ("half", "latency × 1.5, of twice the spread")}
BEYOND |= {("tenth", "latency × 1.5, of twice the spread")}


def main() -> None:
    with recording("rollback", __doc__ or "") as record:
        alike, calls, planted = (500, 2000, 50) if record.quick else (10_000, 2000, 1000)
        policy = Policy(stables_per_trial=stables(0.1))
        record.parameters = {
            "seed": SEED,
            "runs": {"alike": alike, "planted": planted},
            "trial_calls": calls,
            "median_ms": 1e3 * MEDIAN_SECONDS,
            "load": {"kept": KEPT, "anew": ANEW},
            "policy": policy.model_dump(mode="json"),
        }
        rng = np.random.default_rng(SEED)
        same_counts(rng, policy)
        for share, of_it in ((0.1, alike), (0.5, alike)):
            some = Policy(stables_per_trial=stables(share))
            false_alarms(record, rng, some, of_it, calls, edge=False)
        false_alarms(record, rng, policy, alike, calls, edge=True)
        routed(record, rng, planted, calls)
        for name, share in (("tenth", 0.1), ("half", 0.5)):
            for fault in FAULTS:
                detection(record, rng, name, share, fault, planted)
        record.figure("1 stable call each, errors from 1 %: the best test, looking once at 500 pairs", once(rng), "%")
        costs(record, policy)


def least(policy: Policy, signal: Signal, most: int) -> Counts:
    """Of n = 0 … most comparisons, how many against the trial are an alarm (more than n: none is)."""
    found, k, p0 = np.empty(most + 1, np.int64), 0, policy.allowed(signal)
    for n in range(most + 1):
        while k <= n and e_value(Tally(n, k), p0) < policy.needed:
            k += 1
        found[n] = k
    return found


def blocks(rng: np.random.Generator, runs: int, calls: int, many: int, edge: bool) -> Iterator[tuple[Floats, Floats, Any]]:
    """Calls of releases that are alike, in blocks of `many` stable ones and one of the trial: seconds by run, trial call and
    place in the block, which of them failed, and which answers disagreed. At the `edge` the trial is as bad as it may be."""
    for start in range(0, runs, CHUNK):
        size = min(CHUNK, runs - start)
        shape = (size, calls, many + 1)
        load = np.empty((calls * (many + 1), size), np.float32)
        now = np.zeros(size, np.float32)
        for at, fresh in enumerate(rng.standard_normal(load.shape, np.float32)):
            now = np.float32(KEPT) * now + np.float32(ANEW) * fresh
            load[at] = now
        loads = load.T.reshape(shape)
        spread = rng.uniform(0.1, 0.5, (size, 1, 1)).astype(np.float32)
        seconds = np.exp(loads + spread * rng.standard_normal(shape, np.float32)) * np.float32(MEDIAN_SECONDS)
        rate = np.full((size, 1, 1), 0.02, np.float32) if edge else rng.uniform(0, 0.02, (size, 1, 1)).astype(np.float32)
        failed = rng.random(shape, np.float32) < rate * np.exp(loads).clip(0.25, 4)
        if edge:
            seconds[..., -1] = seconds[..., -1] * np.float32(1.2) + np.float32(0.0002)
        differ = rng.random((size, calls), np.float32) < (0.03 if edge else rng.uniform(0, 0.01, (size, 1)))
        yield seconds, failed, differ


def counted(seconds: Floats, failed: Any, differ: Any, policy: Policy) -> dict[Signal, tuple[Counts, Counts]]:
    """What `Pairing` counts of blocks: n and k of each signal after every trial call."""
    many = policy.stables_per_trial
    failures, trial = failed.sum(2), failed[..., -1]
    telling = failures <= many
    held = np.where(failed[..., :-1], np.inf, seconds[..., :-1])
    median = np.partition(held, many // 2, axis=2)[..., many // 2]
    timed = ~trial
    timed[:, :WARM] = False
    slow = timed & (seconds[..., -1] > policy.max_slowdown * median.astype(np.float64) + 0.0002)
    one = np.ones_like(differ)
    pairs = {
        Signal.errors: (np.where(telling, failures, 0), telling & trial),
        Signal.latency: (timed, slow),
        Signal.agreement: (one, differ),
    }
    return {signal: (n.cumsum(1, dtype=np.int64), k.cumsum(1, dtype=np.int64)) for signal, (n, k) in pairs.items()}


def same_counts(rng: np.random.Generator, policy: Policy) -> None:
    """That the counts which numpy makes are those of `Pairing`, after every call of ten runs."""
    seconds, failed, differ = next(blocks(rng, 10, 300, policy.stables_per_trial, edge=True))
    fast = counted(seconds, failed, differ, policy)
    for run in range(len(seconds)):
        pairing = Pairing(policy)
        for call in range(seconds.shape[1]):
            for place in range(policy.stables_per_trial):
                pairing.stable(bool(failed[run, call, place]), float(seconds[run, call, place]))
            pairing.trial(bool(failed[run, call, -1]), float(seconds[run, call, -1]))
            pairing.agreed(1, int(differ[run, call]))
            for signal, (n, k) in fast.items():
                assert pairing.evidence.of(signal) == Tally(int(n[run, call]), int(k[run, call])), (signal, run, call)


def false_alarms(record: Record, rng: np.random.Generator, policy: Policy, runs: int, calls: int, *, edge: bool) -> None:
    many = policy.stables_per_trial
    limits = {signal: least(policy, signal, calls * (many + 1)) for signal in (Signal.latency, Signal.agreement)}
    limits[Signal.errors] = least(policy, Signal.errors, calls * 2)
    alarms, by_signal = 0, dict.fromkeys(limits, 0)
    for drawn in blocks(rng, runs, calls, many, edge):
        any_alarm = np.zeros(len(drawn[0]), np.bool_)
        for signal, (n, k) in counted(*drawn, policy).items():
            hit = (k >= limits[signal][n]).any(1)
            by_signal[signal] += int(hit.sum())
            any_alarm |= hit
        alarms += int(any_alarm.sum())
    title = f"false alarms, {many} stable calls each" + (", at the edge of what is allowed" if edge else "")
    kept = {signal.value: count for signal, count in by_signal.items()}
    record.figure(title, 100 * alarms / runs, "%", most=1, runs=runs, calls=calls, signals=kept)


def routed(record: Record, rng: np.random.Generator, runs: int, calls: int) -> None:
    """The same as a gateway has it: a call goes to the trial by chance, so that the pairing must wait and leave out."""
    found = [taken_back(rng, Fault("", float(rng.uniform(0, 0.02)), disagree=0.01), 0.1, calls) for _ in range(runs)]
    alarms = sum(call is not None for call in found)
    record.figure("false alarms, routed by chance", 100 * alarms / runs, "%", most=1, runs=runs, calls=calls)


def detection(record: Record, rng: np.random.Generator, name: str, share: float, fault: Fault, runs: int) -> None:
    found = [taken_back(rng, fault, share, 2000) for _ in range(runs)]
    calls = np.array([2001 if call is None else call for call in found])
    within = 100 * float((calls <= 500).mean())
    title = f"{fault.name}, a {name} of calls: found within 500 trial calls"
    target = None if (name, fault.name) in BEYOND else 99
    tail = {f"p{part}": int(np.percentile(calls, part, method="higher")) for part in (50, 90, 99)}
    record.figure(title, within, "%", least=target, runs=runs, longest=int(calls.max()), **tail)


_LIMITS: dict[int, dict[Signal, list[int]]] = {}


def taken_back(rng: np.random.Generator, fault: Fault, share: float, most: int) -> int | None:
    """After how many calls of the trial it is taken back, looking after each; None where it is not within `most`."""
    policy = Policy(stables_per_trial=stables(share))
    if policy.stables_per_trial not in _LIMITS:
        signals = (Signal.errors, Signal.latency, Signal.agreement)
        _LIMITS[policy.stables_per_trial] = {signal: least(policy, signal, 4000).tolist() for signal in signals}
    limits, pairing, trials, load = _LIMITS[policy.stables_per_trial], Pairing(policy), 0, 0.0
    while trials < most:
        count = int(250 / share)
        to_trial = rng.random(count) < share
        loads, load = drift(rng, count, load)
        seconds = np.exp(loads + fault.spread * rng.standard_normal(count)) * MEDIAN_SECONDS
        seconds[to_trial] *= fault.slowdown
        rate = fault.base * np.exp(loads).clip(0.25, 4) + np.where(to_trial, fault.errors, 0)
        columns = (to_trial, rng.random(count) < rate, seconds, rng.random(count) < fault.disagree)
        for trial, failed, took, differs in zip(*(column.tolist() for column in columns), strict=True):
            if not trial:
                pairing.stable(failed, took)
                continue
            trials += 1
            pairing.trial(failed, took)
            pairing.agreed(1, differs)
            evidence = pairing.evidence
            if any((tally := evidence.of(signal)).k >= limit[tally.n] for signal, limit in limits.items()):
                assert judge(evidence, policy).rolls_back
                return trials if trials <= most else None
    return None


def drift(rng: np.random.Generator, count: int, load: float) -> tuple[NDArray[np.float64], float]:
    found = []
    for fresh in (ANEW * rng.standard_normal(count)).tolist():
        load = KEPT * load + fresh
        found.append(load)
    return np.array(found), load


def once(rng: np.random.Generator, runs: int = 200_000) -> float:
    """How often 6 % is told from 1 % by 500 independent pairs with the same risk of a false alarm, by McNemar's exact test made
    uniformly most powerful (it alarms by chance at its edge): no unbiased test finds more of them by then."""
    risk, trial_alone, stable_alone = 1 / Policy().needed, 0.06 * 0.99, 0.01 * 0.94
    n = rng.binomial(500, trial_alone + stable_alone, runs)
    k = rng.binomial(n, trial_alone / (trial_alone + stable_alone))
    found = 0.0
    for count in np.unique(n):
        chances = np.array([math.comb(int(count), at) for at in range(int(count) + 1)], float) / 2.0**count
        above = chances[::-1].cumsum()[::-1]
        power = np.where(above <= risk, 1.0, np.where(above - chances <= risk, (risk - (above - chances)) / chances, 0.0))
        found += power[k[n == count]].sum()
    return 100 * float(found) / runs


def costs(record: Record, policy: Policy) -> None:
    """Processor time of what a gateway does for each call, and of a verdict."""
    pairing, calls = Pairing(policy), 200_000
    stable, trial = pairing.stable, pairing.trial
    begun = time.process_time()
    for number in range(calls):
        if number % 10:
            stable(False, 0.005)
        else:
            trial(False, 0.005)
    record.figure("Pairing, one call", 1e6 * (time.process_time() - begun) / calls, "µs", most=0.5)
    evidence = Evidence(Tally(40, 9), Tally(400, 90), Tally(400, 3), Tally(10, 4))
    begun = time.process_time()
    for _ in range(2000):
        judge(evidence, policy)
    record.figure("judge", 1e6 * (time.process_time() - begun) / 2000, "µs")


if __name__ == "__main__":
    main()
