"""The gRPC port of a gateway over loopback, in one process: what its calls take of room and of quotas while they wait."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc
import pytest
from serving_fakes import eventually
from serving_gateway_fakes import KEY, Bench, record, route

from modelyard.errors import RateLimited
from modelyard.serving.follower import State
from modelyard.serving.gateway import SMALL
from modelyard.serving.grpc import server as module
from modelyard.serving.grpc.messages import ModelInferRequest
from modelyard.serving.grpc.server import SERVICE, Server
from modelyard.serving.types import DeploymentState
from modelyard.tenancy.quota import Quota

AUTH = (("authorization", f"Bearer {KEY}"),)
ASLEEP = route(state=DeploymentState.asleep, endpoints=(), wakes=True)
LARGE = 300_000
LIMIT = 1_000_000


def message(size):
    return ModelInferRequest(model_name="digits", raw_input_contents=[bytes(size)]).SerializeToString()


def scene(**options):
    """Run an async test with a bench and a channel to its port."""

    def wrap(test):
        def run(tmp_path):
            async def inner():
                bench = Bench(tmp_path, body_limit=LIMIT, **options)
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                server = Server(bench.gateway)
                await server.start("127.0.0.1", port)
                try:
                    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                        await test(bench, channel)
                finally:
                    await server.stop(0)

            asyncio.run(asyncio.wait_for(inner(), 20))

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return wrap


def infer(channel, size):
    return channel.unary_unary(f"/{SERVICE}/ModelInfer")(message(size), metadata=AUTH)


@scene(routes=[ASLEEP])
async def test_a_call_that_is_held_takes_room_until_its_client_leaves(bench, channel):
    before = bench.gateway._bodies
    held = infer(channel, LARGE)
    await eventually(lambda: bench.gateway.sleepers.any)
    assert before - bench.gateway._bodies >= LARGE - SMALL
    held.cancel()
    await eventually(lambda: bench.gateway._bodies == before)
    assert not bench.gateway.sleepers.any


@scene(routes=[ASLEEP])
async def test_a_call_that_was_held_keeps_its_room_until_it_is_answered(bench, channel):
    before = bench.gateway._bodies
    held = infer(channel, LARGE)
    await eventually(lambda: bench.gateway.sleepers.any)
    bench.gateway.apply(State(2, [record()], [route()]))
    await eventually(lambda: bench.router.sent)
    [call] = bench.router.sent
    assert (call.frame.data, bench.gateway._bodies < before) == (message(LARGE), True)
    bench.router.answer(call)
    assert await held == b"{}"
    assert bench.gateway._bodies == before


@scene(routes=[ASLEEP])
async def test_a_call_that_will_not_wake_gives_its_room_back(bench, channel):
    before = bench.gateway._bodies
    held = infer(channel, LARGE)
    await eventually(lambda: bench.gateway.sleepers.any)
    bench.gateway.apply(State(2, [record()], []))
    with pytest.raises(grpc.aio.AioRpcError, match="No deployment 'digits'"):
        await held
    assert bench.gateway._bodies == before


@scene(routes=[ASLEEP])
async def test_where_there_is_no_room_nothing_large_is_held(bench, channel):
    bench.gateway.reserve(bench.gateway._bodies - 1000)
    with pytest.raises(grpc.aio.AioRpcError, match="Too many large requests") as caught:
        await infer(channel, LARGE)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not bench.gateway.sleepers.any
    small = infer(channel, 10)
    await eventually(lambda: bench.gateway.sleepers.any)
    small.cancel()


def test_only_so_many_messages_are_slow_and_they_leave_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SOON", 0.05)

    async def nothing():
        await asyncio.Event().wait()
        yield b""

    @scene()
    async def run(bench, channel):
        before = bench.gateway._bodies
        begun = [channel.stream_unary(f"/{SERVICE}/ModelInfer")(nothing(), metadata=AUTH) for _ in range(9)]
        await eventually(lambda: any(call.done() for call in begun))
        [refused] = [call for call in begun if call.done()]
        assert (await refused.code(), "Too many slow requests" in await refused.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            True,
        )
        assert bench.gateway._bodies == before
        monkeypatch.setattr(module, "_SOON", 10.0)
        answer = infer(channel, LARGE)
        await eventually(lambda: bench.router.sent)
        bench.router.answer(bench.router.sent[0])
        assert await answer == b"{}"
        for call in begun:
            call.cancel()
        await eventually(lambda: bench.gateway._bodies == before)

    run(tmp_path)


@scene(keys=[record(quota=Quota(0.5, 1))], routes=[ASLEEP])
async def test_a_call_that_was_held_is_taken_from_its_quota_as_of_now(bench, channel):
    """As of when it came, the next one would be given what the quota had filled by since, once more."""
    held = infer(channel, 10)
    await eventually(lambda: bench.gateway.sleepers.any)
    await asyncio.sleep(2.2)
    bench.gateway.apply(State(2, [record(quota=Quota(0.5, 1))], [route()]))
    await eventually(lambda: bench.router.sent)
    with pytest.raises(RateLimited):
        bench.gateway.admit(b"/v2/models/digits/infer", tuple((n.encode(), v.encode()) for n, v in AUTH), time.time())
    bench.router.answer(bench.router.sent[0])
    assert await held == b"{}"
