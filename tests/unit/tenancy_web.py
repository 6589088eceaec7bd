"""A small real app of the tenancy room and a client of it, for the tests of its router, routes, failures and repeats."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from modelyard.db import Base, Database
from modelyard.tenancy import service
from modelyard.tenancy.access import LiveKeyRing
from modelyard.tenancy.routes import Routes, check_routes, install, routes
from modelyard.tenancy.types import Scope

PEPPER = b"p" * 32


class Web:
    """An app with the room's routes and those of `more`; keys of the projects 'default' and 'team' by scope in `keys`."""

    def __init__(self, folder: Path, more: Routes | None = None, hosts: frozenset[str] | None = None) -> None:
        self.db = Database(f"sqlite:///{folder / 'yard.db'}")
        Base.metadata.create_all(self.db.engine)
        self.keys: dict[tuple[str, str], str] = {}
        with self.db.begin() as session:
            for project in ("default", "team"):
                service.create_project(session, project)
                for scope in Scope:
                    self.keys[project, scope.name] = service.create_key(session, project, scope, PEPPER).key
        self.app = FastAPI(openapi_url=None)
        state = self.app.state
        state.db, state.pepper, state.keyring, state.hosts = self.db, PEPPER, LiveKeyRing(self.db, PEPPER), hosts
        install(self.app)
        self.app.include_router(routes)
        if more is not None:
            self.app.include_router(more)
        check_routes(self.app)

    def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        """One request; `key` as 'admin' (of default) or 'team:admin', or the text of a key."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            project, _, scope = key.rpartition(":")
            headers["Authorization"] = f"Bearer {self.keys.get((project or 'default', scope), key)}"
        return asyncio.run(self._ask(method, path, headers=headers, **options))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            return await client.request(method, path, **options)


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code; the body is the error and nothing else."""
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message"]
    return response.status_code, body["error"]["code"]
