"""Which platform to speak to, and with which key.

Three sources, best first: arguments, the environment (`MODELYARD_URL`, `MODELYARD_KEY`), and `profile.json` in the data folder
(`MODELYARD_DATA`, default `~/.modelyard`), which `modelyard up` writes. A key never travels to another URL than the one it
came with: the profile's key is for the profile's URL alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from modelyard.errors import Invalid, Unauthorized, Unavailable

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Profile:
    """A platform's URL and a key for it. `file` is the profile.json the key came from, None where it came from elsewhere."""

    url: str
    key: str = field(repr=False)
    project: str | None = None
    file: Path | None = None


def data_folder(data: str | Path | None = None, environment: Mapping[str, str] | None = None) -> Path:
    """The platform's data folder: the argument, else `MODELYARD_DATA`, else `~/.modelyard`."""
    environment = os.environ if environment is None else environment
    return Path(data or environment.get("MODELYARD_DATA") or "~/.modelyard").expanduser().absolute()


def find(
    url: str | None = None, key: str | None = None, data: str | Path | None = None, environment: Mapping[str, str] | None = None
) -> Profile:
    """The profile to use. Raises `Unavailable` where no platform is known, `Unauthorized` where no key fits its URL."""
    environment = os.environ if environment is None else environment
    file = data_folder(data, environment) / "profile.json"
    stored = None if url and key and data is None else read(file)
    sources = [
        (url, key),
        (environment.get("MODELYARD_URL") or None, environment.get("MODELYARD_KEY") or None),
        (stored.url, stored.key) if stored else (None, None),
    ]
    chosen = next((source for source, _ in sources if source), None)
    if chosen is None:
        raise Unavailable(
            f"No platform is known: there is no {file}. Start one with `modelyard up`, or set MODELYARD_URL and MODELYARD_KEY."
        )
    origin_of(chosen)
    fitting = [(source, secret) for source, secret in sources if secret and (source is None or same_origin(source, chosen))]
    if not fitting:
        raise Unauthorized(
            f"No API key for {chosen}: set MODELYARD_KEY. The key in {file} is sent to that profile's own URL alone."
        )
    secret = fitting[0][1]
    from_file = stored if stored is not None and secret == stored.key else None
    return Profile(chosen.rstrip("/"), secret, from_file.project if from_file else None, file if from_file else None)


def read(file: Path) -> Profile | None:
    """The profile in a file, None where there is none. Raises `Invalid` for a file that is not a profile."""
    try:
        body = json.loads(file.read_bytes())
        return Profile(str(body["url"]).rstrip("/"), str(body["key"]), body.get("project"), file)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(
            f'{file} is not a profile: {{"url", "key", "project"}} as `modelyard up` writes it was expected.'
        ) from error


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL. Raises `Invalid` for what is no http(s) URL."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"'{url}' is not a URL: {error}.") from error
    if scheme not in _PORTS or not host:
        raise Invalid(f"'{url}' is not the URL of a platform: something like http://127.0.0.1:8080 was expected.")
    return scheme, host, port or _PORTS[scheme]


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs are the same scheme, host and port; False for what is no URL."""
    try:
        return origin_of(one) == origin_of(other)
    except Invalid:
        return False
