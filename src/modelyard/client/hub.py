"""Files of a Hugging Face hub, fetched where there is a network: by the client, which then uploads them as any other files.

Called by `yard` for sources such as 'hf:org/name' and 'hf:org/name@revision'. Only data and weights are fetched, of the one
commit that the source then names; no code of a repository is fetched or run, and no pickle. Jobs have no network, so none
fetches by itself.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from modelyard.errors import Forbidden, Invalid, NotFound, Unavailable
from modelyard.plugins import load

DATA = (".parquet", ".jsonl", ".ndjson")
# Where a hub keeps, of its own making, the Parquet files of a dataset that came in another form.
_CONVERTED = "refs/convert/parquet"
_DATASET = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_MODEL = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_WHOLE, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# What lies beside a model's weights and is read: its config, tokenizer and image processor, how sentence-transformers pools,
# and the terms it is under.
_BESIDE = re.compile(
    r"(config|generation_config|preprocessor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|modules\.json|config_sentence_transformers\.json|sentence_[a-z_-]+_config\.json|[0-9]+_Pooling/config\.json"
    r"|vocab\.txt|merges\.txt|tokenizer\.model|spiece\.model|(source|target)\.spm"
    r"|chat_template\.jinja|(LICENSE|NOTICE)(\.txt|\.md)?"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def fetched(source: str, kind: str, upload: Callable[[Path], str]) -> tuple[str, str]:
    """A 'dataset' or a 'model' from a hub, by way of a folder that is gone afterwards: what `upload` made of it, and the source
    with its commit."""
    with TemporaryDirectory(prefix="modelyard-") as folder:
        files, pinned = (fetch_dataset if kind == "dataset" else fetch_model)(source, Path(folder))
        return upload(files), pinned


def fetch_dataset(source: str, folder: Path) -> tuple[Path, str]:
    """The data files of 'hf:org/name', below `folder`; where they begin, and the source with its commit. Raises `Invalid`,
    `NotFound`, `Forbidden` where the hub asks who wants it, `Unavailable` where there is no network."""
    match = _DATASET.fullmatch(source)
    if not match:
        raise Invalid(f"'{source}' names nothing on a hub; expected hf:org/name, hf:org/name/config or hf:org/name@revision.")
    name, config = match["name"], match["config"]
    with _asking(source) as api:
        commit, files = _choose(api, source, name, config, match["revision"])
        _download(api, name, files, folder, repo_type="dataset", revision=commit)
    return folder, f"hf:{name}{f'/{config}' if config else ''}@{commit}"


def fetch_model(source: str, folder: Path) -> tuple[Path, str]:
    """The weights in safetensors of 'hf:org/name', its config and its tokenizer, in `folder`; and the source with its commit.
    Raises as `fetch_dataset` does."""
    match = _MODEL.fullmatch(source)
    if not match:
        raise Invalid(f"'{source}' names no model on a hub; expected hf:org/name or hf:org/name@revision.")
    with _asking(source) as api:
        info = api.model_info(match["name"], revision=match["revision"])
        files = model_files(source, [sibling.rfilename for sibling in info.siblings or ()])
        _download(api, match["name"], files, folder, revision=str(info.sha))
    return folder, f"hf:{match['name']}@{info.sha}"


def _download(api: Any, name: str, files: Sequence[str], folder: Path, **where: str) -> None:
    """These files, all of them: a hub takes patterns, and a file's name may look like one."""
    api.snapshot_download(name, allow_patterns=[glob.escape(path) for path in files], local_dir=folder, **where)
    missing = [path for path in files if not (folder / path).is_file()]
    if missing:
        raise Unavailable(f"The hub lists '{missing[0]}' in '{name}' and did not give it; try again later.")


def model_files(source: str, there: Sequence[str]) -> list[str]:
    """What of a model's repository is fetched. Raises `Invalid` where it has no weights that are nothing else."""
    weights = [path for path in there if _WEIGHTS.fullmatch(path)]
    if _CONFIG in there and weights:
        whole = [path for path in weights if path == _WHOLE]  # some keep them beside the same in shards
        shards = [path for path in there if path == _INDEX or path in weights]
        return sorted([*(whole or shards), *(path for path in there if _BESIDE.fullmatch(path))])
    pickles = [path for path in there if path.endswith(_PICKLES)]
    if _CONFIG in there and pickles:
        raise Invalid(
            f"'{source}' has its weights only in files that could run code when they are read ({', '.join(pickles[:3])}), "
            "which are never fetched. Take a revision or a copy of it that has model.safetensors."
        )
    raise Invalid(
        f"'{source}' is no model of transformers: expected {_CONFIG} and model.safetensors, whole or in shards; there are "
        f"{', '.join(sorted(there)[:8]) or 'no files'}."
    )


@contextmanager
def _asking(source: str) -> Iterator[Any]:
    """The hub, and what it refuses in our words."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    api = load("huggingface_hub:HfApi")(endpoint=os.environ.get("HF_ENDPOINT"))
    gated, missing, revision, refused, failed = (
        load(f"huggingface_hub.errors:{name}")
        for name in ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "HfHubHTTPError", "HTTPError")
    )
    try:
        yield api
    except gated as error:
        raise Forbidden(
            f"The hub gives '{source}' to those alone who accepted its terms: accept them on its page there, then set HF_TOKEN "
            "to a token of that account."
        ) from error
    except revision as error:
        raise NotFound(f"'{source}' names a revision that is not there: give a branch, a tag or a commit of it.") from error
    except missing as error:
        raise NotFound(
            f"The hub has no '{source}', or not for everybody: check how it is spelt, or set HF_TOKEN to a token of somebody "
            "who may read it."
        ) from error
    except refused as error:
        if error.response.status_code >= 500:
            raise Unavailable(f"The hub cannot give '{source}' now ({error.response.status_code}); try again later.") from error
        raise Invalid(f"The hub refused '{source}': {str(error).strip().splitlines()[-1]}") from error
    except (failed, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"'{source}' has no room in {gettempdir()} ({error}): make some, or set TMPDIR to a folder that has it."
            ) from error
        raise Unavailable(
            f"'{source}' cannot be fetched, the hub does not answer ({type(error).__name__}). Where there is no network, fetch "
            "it elsewhere and give the files: --from FOLDER."
        ) from error


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
