"""Which replica takes a call, and the connections to them.

`choose` decides; `Router` keeps one connection a replica, sends each call to the one with the least to do, and gives a call
whose replica is lost or ending to another one, once. It knows frames and endpoints, not what is asked or by whom.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from modelyard.errors import Invalid, Overloaded, TimedOut, Unavailable
from modelyard.serving.channel import Channel
from modelyard.serving.dial import dial, machine_of
from modelyard.serving.frames import (
    ALONE,
    SHARED,
    CallFrame,
    CancelFrame,
    EndFrame,
    Fault,
    Frame,
    GrantFrame,
    Head,
    HealthFrame,
    MoreFrame,
    PartFrame,
    Usage,
)
from modelyard.serving.types import Endpoint

FIRST_RETRY, LAST_RETRY = 0.05, 2.0  # seconds between attempts to connect
SILENT = 3.0  # seconds without an answer to HEALTH before a replica is taken last
# Past so many calls at a replica, or bytes that wait for one that does not answer, it is given no more: one that reads nothing
# costs no more.
MOST_CALLS, MOST_UNREAD = 16_384, 32 << 20
_ROUND = 0.4  # seconds: each replica is asked for HEALTH once in it
_MOST_QUESTIONS = 8  # HEALTH unanswered at a time
_MOST_EXTENSIONS = 16  # of one call's grant
_MOST_STRAYS = 1000  # frames that nobody asked for, of one connection
_ELSEWHERE = {Unavailable.code, Overloaded.code}  # not taken, so another replica may
_NO_REPLICA = Fault(Unavailable.code, "No replica of this deployment can be reached; try again shortly.")
_LOST = Fault(Unavailable.code, "The replica ended before it answered; try again.")
_TOO_LONG = Fault(Invalid.code, "What the request's headers say is too long to be passed on; send fewer or shorter ones.")
_UNREAD = Fault(Overloaded.code, "The replica has not taken the calls it was sent before; try again shortly.")
_LATE = Fault(TimedOut.code, "The call was not answered in the time allowed.")


def choose(loads: Sequence[tuple[int, int]], turn: int) -> int:
    """The index of the least load, a pair (how doubtful, calls outstanding); among equals the one whose `turn` it is."""
    least = min(loads)
    equals = [index for index, load in enumerate(loads) if load == least]
    return equals[turn % len(equals)]


class Underway:
    """A call between gateway and replica; whoever sends one is told here. `frame` is kept whole until the call ends, so that
    it can be sent again."""

    frame: CallFrame
    group: Group
    link: Link | None
    retried: bool
    extended = 0  # times that it was granted more
    times: tuple[float, ...] | None = None  # of a sampled call: what its replica told of it

    def part(self, data: bytes, head: Head) -> None:
        """A piece of the answer; the first with its headers, if there are any."""
        raise NotImplementedError

    def ended(self, usage: Usage, error: Fault | None) -> None:
        """The end: called once, also after `late`."""
        raise NotImplementedError

    def late(self, error: Fault) -> None:
        """The deadline passed; `ended` will follow with what was used."""
        raise NotImplementedError

    def restart(self) -> bool:
        """Forget what arrived; False where some of it was already passed on, so that the call cannot be sent again."""
        raise NotImplementedError


class Link:
    """The connection to one replica. `up` is None while the first attempt to connect runs."""

    def __init__(self, router: Router, loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> None:
        self.endpoint, self.machine = endpoint, machine_of(endpoint.address)
        self.calls: dict[int, Underway] = {}
        self.depth = 0
        self.up: bool | None = None
        self.draining = False
        self.retired = False
        self._router, self._loop = router, loop
        self._channel = self._unconnected()
        self._wait = FIRST_RETRY
        self._ahead = 0.0  # seconds of the replica's clock before ours, by which deadlines are told; of this machine: none
        self._heard = loop.time()
        self._questions: set[int] = set()  # by numbers that only who reads them knows
        self._strays = 0
        self._connecting = loop.create_task(self._connect())
        self.distrusted = False

    @property
    def load(self) -> tuple[int, int]:
        """For `choose`: replicas that drain, do not answer or are not connected yet come last."""
        doubt = self.draining or self.up is None or self._loop.time() - self._heard > SILENT
        return int(doubt), max(len(self.calls), self.depth)

    @property
    def full(self) -> bool:
        """Whether it is given no more. Bytes that wait say nothing of a replica that answers: this turn of the loop is long."""
        return len(self.calls) >= MOST_CALLS or (len(self._questions) > 1 and self._channel.unread >= MOST_UNREAD)

    @property
    def state(self) -> str:
        """For people: connecting, lost, silent, draining or ready."""
        if not self.up:
            return "connecting" if self.up is None else "lost"
        if self._loop.time() - self._heard > SILENT:
            return "silent"
        return "draining" if self.draining else "ready"

    def send(self, call: Underway) -> None:
        """Raises `Invalid` where it does not fit a frame, `Overloaded` where the replica does not take what it was sent before;
        then it is as if it had never been sent."""
        if self.full:
            raise Overloaded(_UNREAD.message)
        frame = call.frame
        if self._ahead:
            frame = msgspec.structs.replace(frame, deadline=frame.deadline + self._ahead)
        self._channel.send_whole(frame)
        call.link = self
        self.calls[frame.id] = call

    def cancel(self, call: Underway) -> None:
        if call.frame.id in self.calls:
            self._channel.drop(call.frame.id)
            self._channel.send(CancelFrame(call.frame.id))

    def ask(self, alone: bool) -> None:
        """Ask how the replica is, telling it whether it is alone on its machine."""
        if self.up is not False and len(self._questions) < _MOST_QUESTIONS:  # what is not connected yet has not answered either
            self._questions.add(question := secrets.randbits(63))
            self._channel.send(HealthFrame(question, ALONE if alone else SHARED))

    def check(self, now: float) -> None:
        """Tell the calls that are late. `now` is a time.time()."""
        late = [call for call in self.calls.values() if call.frame.deadline <= now]
        for call in late:
            self.cancel(call)
            call.frame = msgspec.structs.replace(call.frame, deadline=math.inf)  # told once: its END may never come
            call.late(_LATE)
        if self.retired and not self.calls:
            self.close()

    def close(self) -> None:
        """Close for good."""
        self.retired, self.up = True, False
        self._connecting.cancel()
        self._channel.close()

    async def _connect(self) -> None:
        while True:
            try:
                self._ahead = await dial(self._loop, self._channel, self.endpoint.address, self._router.identity)
            except OSError:
                self.up, self._channel = False, self._unconnected()  # what waited in the old one is given to others
                self._questions.clear()
                self._give_back()
                await asyncio.sleep(self._wait)
                self._wait = min(LAST_RETRY, 2 * self._wait)
            else:
                self.up, self._wait, self._heard = True, FIRST_RETRY, self._loop.time()
                return

    def _received(self, frame: Frame) -> None:
        if isinstance(frame, EndFrame):
            self.depth = frame.queue_depth
            call = self.calls.pop(frame.id, None)
            if call is None:
                self._stray()
                return
            self._channel.drop(frame.id)
            self._ended(call, frame)
        elif isinstance(frame, PartFrame):
            call = self.calls.get(frame.id)
            if call is None:
                self._stray()
                return
            call.part(frame.data, frame.head)
        elif isinstance(frame, HealthFrame):
            self._told(frame)
        elif isinstance(frame, MoreFrame):
            self._extend(frame)
        else:
            self._stray()

    def _told(self, frame: HealthFrame) -> None:
        """How a replica is, where it was asked: else one that reads nothing would look alive."""
        if frame.seq not in self._questions:
            self._stray()
            return
        self._questions.remove(frame.seq)
        self._heard, self.depth = self._loop.time(), frame.queue_depth
        self.draining = frame.state != "ready"
        self._router.told(self.endpoint.token, frame.stats)

    def _extend(self, frame: MoreFrame) -> None:
        """Grant a call more. Budgets come later: what may be asked for is given."""
        call = self.calls.get(frame.id)
        grant = None if call is None else call.frame.grant
        if call is None or grant is None or call.extended >= _MOST_EXTENSIONS:
            self._distrust("It asked for more of a grant that has no bound, or too often, or for a call that it does not have.")
            return
        call.extended += 1
        call.frame = msgspec.structs.replace(call.frame, grant=grant + frame.units)
        self._channel.send(GrantFrame(frame.id, frame.units))

    def _stray(self) -> None:
        """It said what nobody asked: a replica that is well does not, one that does all the time keeps us busy."""
        self._strays += 1
        if self._strays > _MOST_STRAYS:
            self._distrust(f"It said more than {_MOST_STRAYS:,} things that nobody had asked.")

    def _ended(self, call: Underway, frame: EndFrame) -> None:
        error, grant = frame.error, call.frame.grant
        if grant is not None and frame.usage.units > grant:
            frame.usage.units = grant
            self._distrust(f"It says it used more than the {grant} units that a call was granted.")
        if error is not None and error.code in _ELSEWHERE:
            self.draining = self.draining or error.code == Unavailable.code
            self._router.again(call, error)
            return
        if frame.data is not None and error is None:
            call.part(frame.data, frame.head)
        call.times = frame.times
        call.ended(frame.usage, error)

    def _lost(self, why: Exception | None) -> None:
        self.up, self._channel, self._strays = False, self._unconnected(), 0
        self._questions.clear()
        if isinstance(why, Invalid):
            self._distrust(why.message)
        self._give_back()
        if not self.retired and not self.distrusted:
            self._connecting = self._loop.create_task(self._connect())

    def _unconnected(self) -> Channel:
        return Channel(self._loop, self._received, self._lost)

    def _distrust(self, why: str) -> None:
        """It says what no replica says: it is given no more calls, and control is told to replace it."""
        if not self.distrusted:
            self.distrusted, self.up = True, False
            self._router.distrusted[self.endpoint.token] = why

    def _give_back(self) -> None:
        calls, self.calls, self.depth = list(self.calls.values()), {}, 0
        for call in calls:
            self._router.again(call, _LOST)


class Group:
    """The replicas of one route. `newer`: those that serve the same version since; what was lost here may go on there."""

    __slots__ = ("_turn", "links", "newer")

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = links
        self.newer: Group | None = None
        self._turn = 0

    @property
    def newest(self) -> Group:
        group = self
        while group.newer is not None:
            group = group.newer
        return group

    @property
    def gone(self) -> bool:
        """Whether none of them is in the routes any more, or can be reached."""
        return all(link.retired or link.up is False for link in self.links)

    @property
    def up(self) -> bool:
        """Whether one of them answers still, be it in the routes or not."""
        return any(link.up for link in self.links)

    def pick(self, but: Link | None = None) -> Link | None:
        """The link for the next call, never `but`, nor a full one while others have room; None where none is up or about to
        be."""
        links = self.links
        if len(links) == 1 and links[0].up and but is None:
            return links[0]
        links = [link for link in links if link.up is not False and link is not but]
        if not links:
            return None
        self._turn += 1
        links = [link for link in links if not link.full] or links
        return links[choose([link.load for link in links], self._turn)]


class Router:
    """All connections of one gateway. Every method runs on the event loop's thread. `told(token, stats)` is called with what a
    replica counted of itself. `identity`: the file with this gateway's key, for replicas on other machines."""

    def __init__(self, loop: asyncio.AbstractEventLoop, identity: Path | None = None) -> None:
        self._loop, self.identity = loop, identity
        self.told: Callable[[str, Mapping[str, Any]], None] = lambda token, stats: None
        self.distrusted: dict[str, str] = {}  # why, by token; whoever tells control empties it
        self._links: dict[Endpoint, Link] = {}
        self._old: set[Link] = set()
        self._next = 0

    def group(self, endpoints: Iterable[Endpoint]) -> Group:
        """The connections to some replicas, made where there are none yet."""
        return Group([self._link(endpoint) for endpoint in endpoints])

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """Let go of every replica but these, once its calls have ended."""
        for endpoint in self._links.keys() - set(endpoints):
            link = self._links.pop(endpoint)
            link.retired = True
            self._old.add(link)

    def number(self) -> int:
        """A fresh id for a call."""
        self._next += 1
        return self._next

    def send(self, call: Underway) -> None:
        """Send a call to the replica of its group that has the least to do."""
        link = call.group.newest.pick()
        if link is None:
            call.ended(Usage(), _NO_REPLICA)
        else:
            self._give(link, call)

    def again(self, call: Underway, error: Fault) -> None:
        """A replica did not take or finish a call: give it to another one, once, or end it with `error`."""
        link = call.group.newest.pick(but=call.link) if not call.retried and call.restart() else None
        if link is None:
            call.ended(Usage(), error)
        else:
            call.retried = True
            self._give(link, call)

    def _give(self, link: Link, call: Underway) -> None:
        try:
            link.send(call)
        except Invalid:
            call.ended(Usage(), _TOO_LONG)
        except Overloaded:
            call.link = link
            self.again(call, _UNREAD)

    def check(self, now: float) -> None:
        """Call it about twice a second: late calls, health, connections no longer needed. `now` is a time.time()."""
        links = (*self._links.values(), *self._old)
        there = Counter(link.machine for link in links if link.up is not False)
        for turn, link in enumerate(links):
            link.check(now)
            ask = partial(link.ask, there[link.machine] == 1)
            # One after another: the answers of many at once would be in the way of calls.
            if turn:
                self._loop.call_later(turn * _ROUND / len(links), ask)
            else:
                ask()
        self._old = {link for link in self._old if link.calls}

    def close(self) -> None:
        for link in (*self._links.values(), *self._old):
            link.close()

    def _link(self, endpoint: Endpoint) -> Link:
        link = self._links.get(endpoint)
        if link is None:
            link = self._links[endpoint] = Link(self, self._loop, endpoint)
        return link
