"""Keys and who they speak for. The gateway holds one `KeyRing` in memory and asks it on every request; control holds a
`LiveKeyRing`, which follows the database by itself. One access function for every process that answers HTTP.

A key is 'my_<id>_<secret>'. Only HMAC-SHA256(pepper, secret) is kept; the pepper is a file beside the database, so that
a dump of the database alone holds no usable key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from modelyard.db import Database, Session, revision
from modelyard.errors import Forbidden, Unauthorized
from modelyard.tenancy.quota import Quota
from modelyard.tenancy.tables import Key, Project
from modelyard.tenancy.types import Principal, Scope

CACHED = 1.0  # seconds a verified token is trusted without computing its digest again
_FOLLOW = 0.25  # seconds between looks at the revision
_FORCED = 0.02  # least seconds between looks forced by unknown keys: guessing cannot hammer the database
_NO_DIGEST = "0" * 64

_MISSING = "No API key was given: send 'Authorization: Bearer my_…' or 'x-api-key: my_…'."
_MALFORMED = "The API key is malformed: expected one header 'Authorization: Bearer my_…' or 'x-api-key: my_…'."
_WRONG = "The API key is not valid."
_EXPIRED = "The API key has expired; ask an administrator of the project for a new one."
_REVOKED = "The API key was revoked; ask an administrator of the project for a new one."


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as a process holds it in memory. `expires` is a time.time() or None."""

    id: str
    project: str
    scope: Scope
    digest: str
    expires: float | None = None
    revoked: bool = False
    quota: Quota | None = None


def mint() -> tuple[str, str, str]:
    """A fresh (id, secret, text). The secret has 192 random bits."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(24)
    return key_id, secret, f"my_{key_id}_{secret}"


def digest(pepper: bytes, secret: str) -> str:
    """HMAC-SHA256 of a secret, hexadecimal: what the database keeps."""
    return hmac.digest(pepper, secret.encode(), hashlib.sha256).hex()


def token_of(authorization: Sequence[str | bytes], api_key: Sequence[str | bytes] = ()) -> str:
    """The token in all values of the headers `Authorization` and `x-api-key`. Raises `Unauthorized` unless there is one."""
    if not authorization and not api_key:
        raise Unauthorized(_MISSING)
    tokens = {*(_bearer(_text(value)) for value in authorization), *(_text(value).strip() for value in api_key)}
    if len(tokens) != 1:
        raise Unauthorized(_MALFORMED)
    return tokens.pop()


def _text(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode("latin-1")
    if not text.isascii():
        raise Unauthorized(_MALFORMED)
    return text


def _bearer(value: str) -> str:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized(_MALFORMED)
    return token.strip()


class KeyRing:
    """All keys of the platform in memory. Threads may verify while another replaces."""

    def __init__(self, pepper: bytes, records: Iterable[KeyRecord] = ()) -> None:
        self._pepper = pepper
        self.replace(records)

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """Hold these keys from now on; what was verified before is forgotten."""
        # One assignment: a verification under way keeps its old pair and cannot put an old verdict into the new cache.
        verified: dict[str | bytes, tuple[float, float, Principal]] = {}
        self._state = ({record.id: record for record in records}, verified)

    def verify(self, token: str | bytes, now: float) -> Principal:
        """Who speaks with this token at `now` (a time.time()). Raises `Unauthorized`; an unknown id and a wrong secret
        answer alike, and only the owner of the secret learns that a key has expired or was revoked."""
        records, verified = self._state
        known = verified.get(token)
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        key_id, secret = _split(token)
        record = records.get(key_id)
        kept = record.digest if record else _NO_DIGEST
        if not hmac.compare_digest(kept, digest(self._pepper, secret)) or record is None:
            raise Unauthorized(_WRONG)
        if record.revoked:
            raise Unauthorized(_REVOKED)
        if record.expires is not None and now >= record.expires:
            raise Unauthorized(_EXPIRED)
        principal = Principal(record.project, record.id, record.scope)
        until = now + CACHED if record.expires is None else min(now + CACHED, record.expires)
        verified[token] = (now, until, principal)
        return principal

    @staticmethod
    def require(principal: Principal, scope: Scope) -> None:
        """Raises `Forbidden` unless the principal's scope reaches `scope`."""
        if principal.scope < scope:
            raise Forbidden(f"This needs a key of scope '{scope.name}'; this key's scope is '{principal.scope.name}'.")

    def knows(self, token: str | bytes) -> bool:
        """Whether there is a key of this token's id."""
        return _split(token)[0] in self._state[0]


def _split(token: str | bytes) -> tuple[str, str]:
    text = _text(token)
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != "my" or not key_id or not secret:
        raise Unauthorized(_WRONG)
    return key_id, secret


class LiveKeyRing(KeyRing):
    """A key ring that follows the database: it looks at the revision every 0.25 s at most, at once for an unknown key
    (a key made a moment ago works), and reads the keys only when the revision moved."""

    def __init__(self, db: Database, pepper: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(pepper)
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._revision = -1
        self._looked = float("-inf")

    def verify(self, token: str | bytes, now: float) -> Principal:
        """As `KeyRing.verify`; may read the database, so async callers go through a thread."""
        self._follow(_FOLLOW)
        if not self.knows(token):
            self._follow(_FORCED)
        return super().verify(token, now)

    def refresh(self) -> None:
        """Look now: after a key was made or revoked in this process."""
        self._follow(0.0)

    def _follow(self, every: float) -> None:
        if self._clock() - self._looked < every:
            return
        with self._lock:
            if self._clock() - self._looked < every:
                return
            with self._db.read() as session:
                number = revision(session)
                if number != self._revision:
                    self.replace(load_keys(session))
                    self._revision = number
            self._looked = self._clock()


def load_keys(session: Session) -> list[KeyRecord]:
    """Every key of every project, for a key ring. The one reader that spans projects."""
    return [
        KeyRecord(
            id=key.id,
            project=key.project,
            scope=Scope(key.scope),
            digest=key.digest,
            expires=key.expires.timestamp() if key.expires else None,
            revoked=key.revoked is not None,
            quota=Quota.of(key.rate, key.burst),
        )
        for key in session.scalars(select(Key))
    ]


def load_quotas(session: Session) -> dict[str, Quota]:
    """The quotas of the projects that have one."""
    found = session.execute(select(Project.name, Project.rate, Project.burst).where(Project.rate.is_not(None)))
    return {name: quota for name, rate, burst in found if (quota := Quota.of(rate, burst)) is not None}
