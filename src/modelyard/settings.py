"""One frozen tree of settings, read once at a process's start and handed down by `app.py`.

Precedence: command-line flag > `MODELYARD_*` environment > `modelyard.toml` in the data folder > default.
Unknown keys are errors. Nothing else in the package reads the environment.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from modelyard.errors import Invalid

# sun_path holds 108 bytes; our longest name below the run folder is about 40.
_LONGEST_RUN_FOLDER = 64


class Settings(BaseSettings):
    """Every setting of the platform. Paths are absolute; times are seconds; sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="MODELYARD_", frozen=True, extra="forbid", env_ignore_empty=True)

    data: Path = Field(default=Path("~/.modelyard"), description="Folder that holds everything the platform keeps.")
    host: str = Field(default="127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port the gateway listens on; 0 picks a free one.")
    grpc: bool = Field(default=False, description="Whether the gateway also answers gRPC, on the port after `port`.")
    hosts: tuple[str, ...] = Field(
        default=(), description="Names this server goes by besides localhost and addresses (JSON list); '*': any."
    )
    database: str = Field(default="", description="SQLAlchemy URL of the database; empty: SQLite in the data folder.")
    store: str = Field(default="", description="URL of the object store; empty: a folder in the data folder.")
    cluster: str = Field(
        default="", description="Ray cluster that runs jobs and replicas: HOST:PORT, ray://HOST:PORT, or 'ray'; empty: none."
    )
    sandbox: Literal["auto", "require", "off"] = Field(
        default="auto", description="bubblewrap around users' code: 'auto' uses it where it works and warns where not."
    )
    job_cpus: int = Field(default=0, ge=0, description="Processors for jobs, a rank one or more; 0: all there are.")
    job_timeout: float = Field(default=24 * 3600.0, gt=0, description="Seconds a job may run that names no timeout.")
    job_heartbeat: float = Field(default=120.0, gt=0, description="Seconds without a sign of life of a rank that end a gang.")
    job_memory: int = Field(default=16 << 30, gt=0, description="Bytes of address space data a rank may take.")
    job_disk: int = Field(default=64 << 30, gt=0, description="Bytes on disk that a job's work folder may take.")
    job_files: int = Field(default=200_000, gt=0, description="Files and folders that a job's work folder may hold.")
    job_restarts: int = Field(default=2, ge=0, description="Times a gang that died or hung is started again before it gets on.")
    checkpoint_days: float = Field(
        default=14.0, ge=0, description="Days that the last checkpoints of a failed or cancelled job are kept."
    )
    job_share_half_life: float = Field(
        default=24 * 3600.0, gt=0, description="Seconds after which what a project held counts half in its fair share."
    )
    body_limit: int = Field(default=100_000_000, gt=0, description="Largest inference body, of a call or its answer, in bytes.")
    cache_bytes: int = Field(
        default=64 << 20, ge=0, description="Bytes of answers a gateway keeps for deployments that ask for a cache."
    )
    call_timeout: float = Field(default=60.0, gt=0, description="Seconds a call may take, queueing included.")
    idle_timeout: float = Field(default=75.0, gt=0, description="Seconds a connection may be silent, or its answers unread.")
    grace: float = Field(default=10.0, ge=0, description="Seconds the gateway serves on without control or the database.")
    serving_memory: int = Field(
        default=0, ge=0, description="Bytes that all replicas of a machine may take together; 0: three quarters of its memory."
    )
    serving_replicas: int = Field(
        default=0, ge=0, description="Replicas that may run at a time, those that are leaving too; 0: as many as memory allows."
    )
    replica_timeout: float = Field(default=60.0, gt=0, description="Seconds a replica may take to become ready.")
    trace_sample: float = Field(
        default=0.0, ge=0, le=1, description="Share of the calls without a traceparent for which a trace is begun."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severity logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, _folder(init_settings().get("data")) / "modelyard.toml")
        return init_settings, env_settings, file

    def model_post_init(self, _: Any) -> None:
        object.__setattr__(self, "data", self.data.expanduser().resolve())

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'modelyard.db'}"

    @property
    def store_url(self) -> str:
        return self.store or (self.data / "store").as_uri()

    @property
    def run(self) -> Path:
        """Folder of the sockets: DATA/run, or a short private one where that path is too long for a socket."""
        folder = self.data / "run"
        if len(str(folder)) <= _LONGEST_RUN_FOLDER:
            return folder
        digest = hashlib.sha256(str(self.data).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"modelyard-{os.getuid()}-{digest}"

    @property
    def identity(self) -> Path:
        """The key by which gateways and control are let in to replicas on other machines; where there are none, no file."""
        return self.data / "gateway.pem"

    @property
    def cache(self) -> Path:
        return self.data / "cache"

    @property
    def jobs(self) -> Path:
        return self.data / "jobs"

    @property
    def logs(self) -> Path:
        return self.data / "logs"


def _folder(flag: Any) -> Path:
    """The data folder, which must be known before the file in it can be read."""
    return Path(str(flag or os.environ.get("MODELYARD_DATA") or "~/.modelyard")).expanduser().resolve()


def read(**flags: Any) -> Settings:
    """Settings from flags (None: not given), environment and file. Raises `Invalid` naming every wrong setting."""
    known = {f"MODELYARD_{name.upper()}" for name in Settings.model_fields} | {"MODELYARD_URL", "MODELYARD_KEY"}
    given = (name for name in os.environ if name.startswith("MODELYARD_") and not name.startswith("MODELYARD_TEST_"))
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        raise Invalid(f"Unknown setting {', '.join(unknown)} in the environment; known are {', '.join(sorted(known))}.")
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise Invalid(f"Wrong settings: {wrong}.") from error
    except SettingsError as error:
        raise Invalid(f'Wrong settings: {error}; a list is JSON, as in ["yard.lan"].') from error
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"modelyard.toml in the data folder is not TOML: {error}.") from error
    if settings.data != _folder(flags.get("data")):
        raise Invalid("modelyard.toml cannot say where the data folder is, for it lies in it: use --data or MODELYARD_DATA.")
    return settings
