"""Files of a Hugging Face hub, fetched where there is a network: by the client, which then uploads them as any other files.

Called by `yard` for sources such as 'hf:org/name', 'hf:org/name/config' and 'hf:org/name@revision'. Only data files are fetched
and no code of a repository is run. Jobs have no network, so none fetches by itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid, Unavailable
from modelyard.plugins import load

DATA = (".parquet", ".jsonl", ".ndjson")
# Where a hub keeps, of its own making, the Parquet files of a dataset that came in another form.
_CONVERTED = "refs/convert/parquet"
_SOURCE = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def fetch_dataset(source: str, folder: Path) -> tuple[Path, str]:
    """The data files of 'hf:org/name', below `folder`; where they begin, and the source with its commit. Raises `Invalid`,
    `Unavailable` where there is no network."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise Invalid(f"'{source}' names nothing on a hub; expected hf:org/name, hf:org/name/config or hf:org/name@revision.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    api = load("huggingface_hub:HfApi")(endpoint=os.environ.get("HF_ENDPOINT"))
    refused, failed = load("huggingface_hub.errors:HfHubHTTPError"), load("huggingface_hub.errors:HTTPError")
    name, config = match["name"], match["config"]
    try:
        commit, files = _choose(api, source, name, config, match["revision"])
        api.snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=files, local_dir=folder)
    except refused as error:
        raise Invalid(f"The hub refused '{source}': {str(error).strip().splitlines()[-1]}") from error
    except (failed, OSError) as error:
        raise Unavailable(
            f"'{source}' cannot be fetched, the hub does not answer ({type(error).__name__}). Where there is no network, fetch "
            "it elsewhere and give the files: --from FOLDER."
        ) from error
    return folder, f"hf:{name}{f'/{config}' if config else ''}@{commit}"


def _choose(api: Any, source: str, name: str, config: str | None, revision: str | None) -> tuple[str, list[str]]:
    """The commit and the paths of the files of one configuration."""
    for wanted in (revision,) if revision else (None, _CONVERTED):
        info = api.dataset_info(name, revision=wanted)
        files = [s.rfilename for s in info.siblings or () if s.rfilename.lower().endswith(DATA)]
        if not files:
            continue
        configs = sorted({path.partition("/")[0] for path in files if "/" in path} - {"data"})
        if config is not None and config not in configs:
            raise Invalid(f"'hf:{name}' has no configuration '{config}'; there are: {', '.join(configs) or 'none'}.")
        if config is None and len(configs) > 1:
            raise Invalid(f"'{source}' has several configurations: name one, as hf:{name}/{configs[0]} ({', '.join(configs)}).")
        return str(info.sha), [path for path in files if config is None or path.startswith(f"{config}/")]
    raise Invalid(f"'{source}' has no Parquet or JSONL files; fetch it by its own instructions and give what came as files.")
