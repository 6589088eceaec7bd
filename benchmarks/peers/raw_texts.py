"""The most that onnxruntime makes of texts that wait: raw_texts.py CONNECTIONS WORKERS SECONDS BATCH, with PEER_….

No keys, no protocol, no frames: worker processes tokenize and compute; this one keeps a pool of CONNECTIONS texts that are
waited for, gives a free worker the eldest and those nearest to it by length, and lets new ones in for those that are done.
That is what a server could at best do with so many callers. A trivial HTTP server in the same process answers wrk at the
same rate, so that the load generator takes as much of the processors as it does beside a real one. Texts come one a line on
standard input, and what was found goes to standard output as JSON: {"batch", "rate", "rates"}.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

SIZES = (2, 4, 8, 16, 32)
ANSWER = 4200  # bytes: 384 numbers as JSON, as the servers answer


def work(pipe: Connection) -> None:
    """One worker, one thread: batches of texts in, nothing but their number out."""
    from runner import Runner

    runner = Runner()
    pipe.send(0)
    while (texts := pipe.recv()) is not None:
        runner(texts)
        pipe.send(len(texts))


class Pool:
    """Texts that are waited for, by length; the eldest decides which batch is next, so that none waits for ever."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = [(len(text.split()), text) for text in texts]
        self._next = 0
        self._waiting: list[tuple[int, int]] = []  # length, number: the smaller the elder

    def fill(self, number: int) -> None:
        for _ in range(number):
            self._waiting.append((self._texts[self._next % len(self._texts)][0], self._next))
            self._next += 1

    def take(self, size: int) -> list[str]:
        if not self._waiting:
            return []
        ordered = sorted(self._waiting)
        at = min(range(len(ordered)), key=lambda index: ordered[index][1])
        first = max(0, min(at - size // 2, len(ordered) - size))
        batch, self._waiting = ordered[first : first + size], ordered[:first] + ordered[first + size :]
        return [self._texts[number % len(self._texts)][1] for _, number in batch]


class Answers(asyncio.Protocol):
    """Holds every request until as many texts have been computed."""

    waiting: ClassVar[list[asyncio.Transport]] = []
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (ANSWER, b"0" * ANSWER)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.got = transport, b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, end, body = self.got.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.got = b""
            Answers.waiting.append(self.transport)

    @classmethod
    def give(cls, number: int) -> None:
        ready, cls.waiting = cls.waiting[:number], cls.waiting[number:]
        for transport in ready:
            transport.write(cls.reply)


async def measure(pipes: list[Connection], texts: list[str], connections: int, size: int, seconds: float) -> float:
    """Texts a second in batches of `size`."""
    loop, pool, busy, done = asyncio.get_running_loop(), Pool(texts), 0, 0
    pool.fill(connections)
    idle = asyncio.Event()
    over = time.monotonic() + seconds

    def feed(pipe: Connection) -> None:
        nonlocal busy
        batch = pool.take(size) if time.monotonic() < over else []
        if batch:
            busy += 1
            pipe.send(batch)
        elif not busy:
            idle.set()

    def computed(pipe: Connection) -> None:
        nonlocal busy, done
        number = pipe.recv()
        busy, done = busy - 1, done + number
        pool.fill(number)
        Answers.give(number)
        feed(pipe)

    for pipe in pipes:
        loop.add_reader(pipe.fileno(), computed, pipe)
    began = time.monotonic()
    for pipe in pipes:
        feed(pipe)
    await idle.wait()
    took = time.monotonic() - began
    for pipe in pipes:
        loop.remove_reader(pipe.fileno())
    return done / took


async def run(pipes: list[Connection], texts: list[str], connections: int, seconds: float, batch: int) -> dict[str, object]:
    """The measurement in batches of `batch`; 0: of the best size, by a trial of each before."""
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    script = Path(os.environ["PEER_FOLDER"]) / "texts.lua"
    script.write_text("wrk.method = 'POST'; wrk.body = string.rep('x', 700)\n")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    words = ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "60s", "-s", str(script), url]
    wrk = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.sleep(0.3)
        sizes = [] if batch else [size for size in SIZES if size <= max(2, connections // len(pipes))]
        rates = {size: await measure(pipes, texts, connections, size, seconds / 4) for size in sizes}
        best = batch or max(rates, key=lambda size: rates[size])
        rate = await measure(pipes, texts, connections, best, seconds)
    finally:
        wrk.terminate()
        await wrk.wait()
        server.close()
    return {"batch": best, "rate": rate, "rates": rates}


def main() -> None:
    connections, workers, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    texts = sys.stdin.read().splitlines()
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(theirs,), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    print(json.dumps(asyncio.run(run(pipes, texts, connections, seconds, int(sys.argv[4])))))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()


if __name__ == "__main__":
    main()
