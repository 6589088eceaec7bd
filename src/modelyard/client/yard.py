"""`Yard`: every verb of the platform as one method. Answers are the management API's JSON, as plain dicts and lists.

Verbs that start work wait for its end unless `wait=False`, and raise the work's own error if it failed; `on_event` sees every
event meanwhile. References are 'name', 'name@3' or 'name@alias'; a bare name means the newest version, but for `optimize`
(the newest that is no optimised variant) and `deploy` (the best, where there is one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from modelyard.client.answer import Answer
from modelyard.client.gating import Gating
from modelyard.client.jobs import Kind, OnEvent, collection
from modelyard.client.outcome import chosen, concerns, dataset_of, newest_original, origins
from modelyard.client.profile import find
from modelyard.client.wire import Wire, segment
from modelyard.errors import Invalid
from modelyard.plugins import load

Json = dict[str, Any]
Tensors = Mapping[str, Any]
Goal = Literal["latency", "throughput", "size", "memory"]
_SOURCES = (
    "A dataset comes from CSV, JSONL, Parquet or text files, images by class, a hub, as hf:org/name, or scikit-learn, as "
    "sklearn:digits."
)


class Yard(Gating):
    """A platform, spoken to over HTTP. Without arguments: the one of `MODELYARD_URL` and `MODELYARD_KEY`, else that of the
    profile in `data` (`MODELYARD_DATA`, `~/.modelyard`). Safe to use from several threads."""

    def __init__(self, url: str | None = None, key: str | None = None, data: str | Path | None = None) -> None:
        self.profile = find(url, key, data)
        super().__init__(Wire(self.profile))

    def __repr__(self) -> str:
        return f"Yard({self.profile.url!r})"

    def __enter__(self) -> Yard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    # Datasets and models

    def upload(self, source: str | Path | Mapping[str, Path], on_event: OnEvent | None = None) -> str:
        """Publish a file, a folder, or files by their path in the artefact; returns the artefact's hash."""
        files = source if isinstance(source, Mapping) else _transfer("files_of")(source)
        return str(_transfer("upload")(self._wire, files, _as_events("upload", on_event)))

    def fetch(self, reference: str, folder: str | Path, *, kind: Kind = "model", on_event: OnEvent | None = None) -> Path:
        """A version's files as a new folder, every byte verified; whole or not at all."""
        artefact = str(self.version(reference, kind)["artefact"])
        return Path(_transfer("fetch")(self._wire, artefact, folder, _as_events("download", on_event)))

    def import_dataset(
        self,
        name: str,
        source: str | Path,
        *,
        target: str | None = None,
        task: str | None = None,
        wait: bool = True,
        on_event: OnEvent | None = None,
        **config: Any,
    ) -> Json:
        """A dataset from files of a kind that docs/data.md names, 'sklearn:digits', or 'hf:org/name' (fetched here, then
        uploaded); `target` is the column to predict. Returns the new version, or the job if not `wait`."""
        inputs, upload = {}, partial(self.upload, on_event=on_event)
        if "://" in str(source):
            raise Invalid(f"'{source}' is a URL, which is not supported: download it first. {_SOURCES}")
        if str(source).startswith("sklearn:"):
            config["source"] = str(source)
        elif str(source).startswith("hf:"):
            artefact, config["source"] = load("modelyard.client.hub:fetched")(str(source), "dataset", upload)
            inputs["files"] = f"artefact:{artefact}"
        else:
            inputs["files"] = f"artefact:{upload(source)}"
        config |= {key: value for key, value in {"target": target, "task": task}.items() if value is not None}
        job = self.submit("import-dataset", config, inputs, target={"kind": "dataset", "name": name})
        return self.result(job["id"], on_event) if wait else job

    def import_model(
        self,
        name: str,
        path: str | Path,
        *,
        module: str | None = None,
        inputs: Sequence[str] = (),
        task: str | None = None,
        wait: bool = True,
        on_event: OnEvent | None = None,
        **config: Any,
    ) -> Json:
        """A model from an .onnx file, weights with `module` ('model.py:SimpleModel': the file and the class they belong to), a
        Hugging Face folder, or 'hf:org/name' (fetched here, then uploaded); `inputs` state forward's tensors, as
        'x:FP32[-1,10]'. Returns the new version, or the job if not `wait`."""
        config |= {"inputs": list(inputs)} if inputs else {}
        config |= {"task": task} if task else {}
        upload = partial(self.upload, on_event=on_event)
        if str(path).startswith("hf:") and not module:
            artefact, config["source"] = load("modelyard.client.hub:fetched")(str(path), "model", upload)
        else:
            files, more = _transfer("model_files")(path, module)
            artefact, config = upload(files), {**config, **more}
        uploaded = {"files": f"artefact:{artefact}"}
        job = self.submit("import-model", config, uploaded, target={"kind": "model", "name": name})
        return self.result(job["id"], on_event) if wait else job

    def datasets(self) -> list[Json]:
        return list(self._wire.get("/api/datasets"))

    def models(self) -> list[Json]:
        return list(self._wire.get("/api/models"))

    def set_alias(self, reference: str, alias: str, kind: Kind = "model") -> Json:
        """Make 'name@alias' mean the version that `reference` means now."""
        version = self.version(reference, kind)
        path = f"{collection(kind)}/{segment(version['name'])}/aliases/{segment(alias)}"
        self._wire.put(path, {"version": version["version"]})
        return self.version(f"{version['name']}@{alias}", kind)

    def delete(self, reference: str, kind: Kind = "model") -> None:
        """Forget a name with all its versions, or one version of it ('name@3'). Raises `Conflict` while something still uses
        it. The files stay, by their hash, until they are collected."""
        name, at, version = reference.partition("@")
        self._wire.delete(f"{collection(kind)}/{segment(name)}" + (f"/versions/{segment(version)}" if at else ""))

    # Work

    def train(
        self,
        name: str,
        dataset: str,
        recipe: str = "image-classifier",
        *,
        ranks: int = 1,
        code: str | Path | None = None,
        model: str | None = None,
        base: str | None = None,
        timeout: float | None = None,
        max_restarts: int | None = None,
        priority: int | None = None,
        resources: Mapping[str, int] | None = None,
        resume: str | None = None,
        sweep: Mapping[str, Any] | str | None = None,
        trials: int = 20,
        parallel: int | None = None,
        wait: bool = True,
        on_event: OnEvent | None = None,
        **config: Any,
    ) -> Json:
        """Train model `name` on a dataset by a gang of `ranks`. `code` is a file or folder with your own module; `model` a
        version to continue, `base` one to fine-tune; `config` the recipe's (epochs=…, lr=…). Returns the version, or the job.
        With `sweep` ({"lr": "1e-4..1e-2:log", "width": [16, 32]}) of that many `trials`, and the best of them: by `metric`,
        `direction`, `grace` and `factor`, which go with `config`. `resources`: a rank's {'cpus', 'gpus', 'memory' in bytes}.
        `resume`: a job that failed or was cancelled, from whose newest checkpoint to go on, on whatever ranks and mesh."""
        inputs = {"dataset": f"dataset:{dataset}"}
        inputs |= {"model": f"model:{model}"} if model else {}
        inputs |= {"base": f"model:{base}"} if base else {}
        inputs |= {"code": f"artefact:{self.upload(code, on_event)}"} if code else {}
        config["recipe"] = recipe
        limits: Json = {"timeout": timeout, "max_restarts": max_restarts, "priority": priority, "resources": resources}
        limits["resume"] = resume
        kind, full, ranks = load("modelyard.client.sweep:asked")(config, ranks, sweep, trials, parallel)
        job = self.submit(kind, full, inputs, target={"kind": "model", "name": name}, ranks=ranks, **limits)
        return self.result(job["id"], on_event) if wait else job

    def optimize(
        self,
        reference: str,
        *,
        dataset: str | None = None,
        max_accuracy_drop: float = 1.0,
        goal: Goal = "latency",
        steps: Sequence[str | Mapping[str, Any]] = (),
        trials: int | None = None,
        time_budget: float | None = None,
        resources: Mapping[str, int] | None = None,
        wait: bool = True,
        on_event: OnEvent | None = None,
        **config: Any,
    ) -> Json:
        """Make variants of a model, measure them, and choose the best whose accuracy falls by at most `max_accuracy_drop`
        percentage points; with `steps` ('prune:channels=0.5', 'quantize:static-int8') one, made by these. A bare name means its
        newest version that is no such variant; `dataset` None what it was trained on. With `trials` or `time_budget` (seconds)
        chains of steps are searched, in a `space` of your own if you like. Returns the version, or the job."""
        reference = reference if "@" in reference else newest_original(self.versions(reference))
        dataset = dataset or dataset_of(self.lineage(reference))
        inputs = {"model": f"model:{reference}", "dataset": f"dataset:{dataset}"}
        config |= {"max_accuracy_drop": max_accuracy_drop, "goal": goal}
        kind, config = load("modelyard.client.search:asked")(config, steps, trials, time_budget)
        target = {"kind": "model", "name": reference.partition("@")[0]}
        job = self.submit(kind, config, inputs, target=target, resources=resources)
        return self.result(job["id"], on_event) if wait else job

    def reproduce(self, reference: str, on_event: OnEvent | None = None) -> Json:
        """Run the job again that made a model version, as 'NAME-reproduced', and compare the weights: {reference, reproduced,
        job, identical, largest, differences: [{tensor, largest, why}], environment: [{name, first, second}]}."""
        return dict(load("modelyard.client.reproduce:reproduce")(self, reference, on_event))

    def result(self, job: str, on_event: OnEvent | None = None) -> Json:
        """Wait for a job and return the version it made: the aliased one ('best') where it made several. Raises as `wait`."""
        ended = self.wait(job, on_event)
        return self.version(chosen(ended["outputs"])["reference"], ended["target"]["kind"])

    # Serving

    def predict(
        self,
        name: str,
        inputs: Tensors | None = None,
        *,
        image: Any = None,
        text: Any = None,
        version: str | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """One call. `inputs`: tensor name → numpy array, or nested lists that take the model's own datatype, dim 0 the batch.
        `image`: a path, the bytes of a PNG or JPEG, a Pillow image, or a list of these; `text`: one, or a list. `version`: only
        that one may answer. `traceparent`: the trace it belongs to, if not that of OpenTelemetry's active span."""
        asked = {"inputs": inputs, "image": image, "text": text}
        # numpy costs more than all the rest of the client, so it comes with the first prediction
        headers, body = load("modelyard.client.oip:request")(asked, lambda: self._signature(name))
        headers |= {"traceparent": traceparent} if traceparent else {}
        path = f"/v2/models/{segment(name)}" + (f"/versions/{segment(version)}" if version else "") + "/infer"
        response = self._wire.send("POST", path, body=lambda: (body,), headers=headers)
        answer: Answer = load("modelyard.client.oip:decode")(response.headers, response.content)
        return answer

    # Who used what

    def receipt(self, of: Answer | str) -> Json:
        """What an answer (or, by name, what a deployment serves now) rests on and what it used: {deployment, model, lineage,
        jobs, usage}. `lineage` is the tree of versions, jobs and hashes down to the data; `usage` the ledger's rows of those
        jobs and of serving that version."""
        name, model = (of, self.deployment(of)["model"]) if isinstance(of, str) else (of.deployment, of.model)
        tree = self.lineage(model)
        jobs = [self.job(job) for job in dict.fromkeys(node["job"] for node in origins(tree) if node.get("job"))]
        used = [row for row in self.usage() if concerns(row, name, tree["reference"], [job["id"] for job in jobs])]
        return {"deployment": name, "model": tree["reference"], "lineage": tree, "jobs": jobs, "usage": used}

    def usage(self, *, since: str | None = None) -> list[Json]:
        """What the project's jobs and deployments used."""
        return list(self._wire.get("/api/usage", since=since))

    def audit(self) -> list[Json]:
        """Who did what, oldest first."""
        return list(self._wire.get("/api/audit"))

    def whoami(self) -> Json:
        return dict(self._wire.get("/api/whoami"))

    def keys(self) -> list[Json]:
        return list(self._wire.get("/api/keys"))

    def create_key(
        self,
        scope: str,
        *,
        name: str | None = None,
        expires: float | None = None,
        rate: float | None = None,
        burst: int | None = None,
    ) -> Json:
        """A new API key of this project: {id, key, scope}; `key` is never shown again. `expires`: seconds from now. `rate`:
        calls a second it may make, `burst` at once."""
        body = {"scope": scope, "name": name, "expires": expires, "rate": rate, "burst": burst}
        return dict(self._wire.post("/api/keys", {key: value for key, value in body.items() if value is not None}))

    def revoke_key(self, key: str) -> None:
        """Revoke a key by its id; it is refused everywhere within a second."""
        self._wire.delete(f"/api/keys/{segment(key)}")

    def set_quota(self, *, rate: float | None, burst: int | None = None, key: str | None = None, project: str = "") -> Json:
        """Let a key, by its id, or else a project (this one, where not said) make `rate` calls a second and `burst` at once;
        rate None: any number. It holds within a second."""
        name = segment(key or project or self.whoami()["project"])
        return dict(self._wire.put(f"/api/{'keys' if key else 'projects'}/{name}/quota", {"rate": rate, "burst": burst}))

    def projects(self) -> list[Json]:
        return list(self._wire.get("/api/projects"))

    def create_project(self, name: str) -> Json:
        return dict(self._wire.post("/api/projects", {"name": name}))

    def _signature(self, name: str) -> Mapping[str, str]:
        """The model's input datatypes by name; asked until they are known, which is once a replica has been ready."""
        known = self._datatypes.get(name)
        if known is None:
            described = self._wire.get(f"/v2/models/{segment(name)}")
            known = {tensor["name"]: tensor["datatype"] for tensor in described["inputs"]}
            if known:
                self._datatypes[name] = known
        return known


def _transfer(verb: str) -> Any:
    """A verb of `transfer`, which comes with the first file: it loads more than all the rest of the client."""
    return load(f"modelyard.client.transfer:{verb}")


def _as_events(what: str, on_event: OnEvent | None) -> Callable[[int, int], None] | None:
    """Tell a transfer's progress as a job's: one listener shows both."""
    if on_event is None:
        return None
    return lambda done, total: on_event({"type": "progress", "what": what, "done": done, "total": total, "unit": "bytes"})
