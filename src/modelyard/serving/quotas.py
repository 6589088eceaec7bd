"""The quotas of keys and projects as a gateway applies them: one bucket each, kept while what is known of it changes.

Each gateway counts by itself, on its event loop, so that a call waits for nobody. `tenancy.quota` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelyard.errors import RateLimited
from modelyard.tenancy.access import KeyRecord
from modelyard.tenancy.quota import Quota, level, wait
from modelyard.tenancy.types import Principal


class Bucket:
    """Room for calls of a key or a project: so many `tokens` at `at`, a time.time(). `of` names it to the caller."""

    __slots__ = ("at", "of", "quota", "tokens")

    def __init__(self, of: str, quota: Quota, now: float) -> None:
        self.of, self.quota, self.tokens, self.at = of, quota, float(quota.burst), now


Buckets = tuple[Bucket, ...]


class Quotas:
    """The buckets of one gateway."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def know(self, keys: Iterable[KeyRecord], projects: Mapping[str, Quota], now: float) -> None:
        """Exactly these from now on. A quota that changed goes on from what its bucket has room for."""
        found = {f"key '{key.id}'": key.quota for key in keys if key.quota is not None}
        found |= {f"project '{name}'": quota for name, quota in projects.items()}
        before, self._buckets = self._buckets, {}
        for name, quota in found.items():
            bucket = self._buckets[name] = before.get(name) or Bucket(name, quota, now)
            if bucket.quota != quota:
                bucket.tokens, bucket.at = level(bucket.quota, bucket.tokens, bucket.at, now), now
                bucket.quota = quota

    def of(self, principal: Principal) -> Buckets | None:
        """Those that a caller's calls are taken from; None where there are none."""
        names = (f"key '{principal.key}'", f"project '{principal.project}'")
        return tuple(self._buckets[name] for name in names if name in self._buckets) or None


def take(buckets: Buckets, now: float) -> None:
    """Take one call from each, or raise `RateLimited` and take none."""
    for bucket in buckets:
        quota = bucket.quota
        bucket.tokens, bucket.at = level(quota, bucket.tokens, bucket.at, now), now
        seconds = wait(quota, bucket.tokens)
        if seconds:
            raise RateLimited(
                f"The quota of {bucket.of} is {quota.rate:g} calls a second, {quota.burst} at once; "
                f"try again in {seconds:.3g} s.",
                seconds,
            )
    for bucket in buckets:
        bucket.tokens -= 1.0
