"""How a call ends in a replica without an answer."""

from __future__ import annotations

from modelyard import telemetry
from modelyard.errors import Internal, TimedOut
from modelyard.serving.frames import CallFrame, Fault

_log = telemetry.log(__name__)
CANCELLED = Fault("cancelled", "The caller went away.")


def late() -> TimedOut:
    return TimedOut("The call's time was used up before it was computed.")


def unexpected(error: Exception, frame: CallFrame) -> Internal:
    """What the caller is told of a defect, which the log has."""
    _log.exception("call failed", **telemetry.asked_by(frame.head), error=repr(error)[:500])
    return Internal()
