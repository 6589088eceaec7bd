"""The most that a server can answer: wrk walks through distinct bodies, each connection sending when it was answered.

It is Debian's: `apt-get install wrk`.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Each connection's requests walk through all bodies; wrk runs this in its one thread.
_LUA = """
local sizes, ready, at = {%(sizes)s}, {}, 0
function init(args)
  local file = io.open(%(bodies)s, "rb")
  for i, size in ipairs(sizes) do ready[i] = wrk.format("POST", %(path)s, {%(headers)s}, file:read(size)) end
  file:close()
end
function request() at = at %% #ready + 1; return ready[at] end
function done(s, l, r)
  local e = s.errors
  io.write(string.format(
    '\\n@@{"requests":%%d,"us":%%d,"p50":%%.4f,"p99":%%.4f,"errors":%%d,"refused":%%d}\\n',
    s.requests, s.duration, l:percentile(50) / 1000, l:percentile(99) / 1000,
    e.connect + e.read + e.write + e.timeout, e.status))
end
"""


def needs_wrk(script: str) -> None:
    if shutil.which("wrk") is None:
        sys.exit(f"{script} drives servers with wrk: apt-get install wrk (Debian, Ubuntu), then run it again.")


def wrk(
    url: str, path: str, headers: Mapping[str, str], bodies: Sequence[bytes], *, connections: int, seconds: int
) -> dict[str, Any]:
    """What wrk says of some seconds of load: requests, us, p50 and p99 in ms, errors, refused (not 2xx or 3xx), and `wrk_cpu`,
    the processor seconds it took itself."""
    with tempfile.TemporaryDirectory() as folder:
        file, script = Path(folder) / "bodies", Path(folder) / "load.lua"
        file.write_bytes(b"".join(bodies))
        lines = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
        values = {"sizes": ",".join(str(len(body)) for body in bodies), "bodies": json.dumps(str(file)), "headers": lines}
        script.write_text(_LUA % {**values, "path": json.dumps(path)})
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script), url]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"@@(\{.*\})", done.stdout)
    if not found:
        raise RuntimeError(f"wrk said: {(done.stdout + done.stderr)[-500:]}")
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(found[1].replace("-nan", "0").replace("nan", "0")), "wrk_cpu": round(own, 2)}
