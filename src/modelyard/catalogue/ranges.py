"""HTTP ranges for downloads (RFC 9110): which part of a file a request asks for. One range; several get the whole file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `stop` (exclusive) of a file, and how to announce them."""

    start: int
    stop: int
    status: int
    headers: dict[str, str]


def asked(headers: Mapping[str, str], size: int, root: str) -> Part | Response:
    """The part asked for by `Range` and `If-Range`; a 416 answer where it lies behind the end of the file.

    What is asked in another way than 'bytes=a-b', '…a-' or '…-n' gets the whole file, as the standard has it.
    """
    tag = f'"{root}"'
    common = {"ETag": tag, "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    wanted = _RANGE.fullmatch(headers.get("range", "").strip())
    first, last = wanted.groups() if wanted else ("", "")
    whole = not (first or last) or headers.get("if-range", tag) != tag or (first and last and int(first) > int(last))
    if whole:
        return Part(0, size, 200, {**common, "Content-Length": str(size)})
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{size}"})
    announced = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    return Part(start, stop, 206, {**common, **announced})
