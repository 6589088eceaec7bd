"""From a split of a dataset to what a model is shown and what it should answer, through the version's own transform: what is
measured went the way a caller's data goes. Called by `optimise`; knows datasets and transforms, no engine's inside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.data.groups import Groups
from modelyard.data.tokens import MAX_CALL_TOKENS
from modelyard.data.transforms import Transform, build, softmax
from modelyard.engines.base import BatchEngine, ModelCard
from modelyard.errors import Invalid
from modelyard.optimisation import embeddings
from modelyard.optimisation.embeddings import FOUND
from modelyard.optimisation.evidence import Metric
from modelyard.tensors import DATATYPES, Array

_CHUNK = 64
_TEXTS: tuple[Metric, ...] = ("rouge", "chrf", "bleu", "wer", "accuracy")  # by which texts that are answered can be judged
_USUAL: Mapping[str | None, Metric] = {"automatic-speech-recognition": "wer", "translation": "chrf"}
TRAINING = "training.json"  # what training leaves beside the card: which features and target a module was trained on


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of engine inputs, and for each the wanted answer: INT64 position of the label in the dataset, FP64 number, or text
    without what surrounds it. Of embeddings of texts, which have none, it is how alike the original finds the row and another
    (`Source.truth`)."""

    inputs: Mapping[str, Array]
    wanted: Array


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answers to rows: predictions in the form of `Examples.wanted`, a label whose scores are not finite being -1
    and never right; and how sure it is of each label, 0 to 1, None where it gives no scores."""

    predicted: Array
    confidence: Array | None = None

    def only(self, kept: Array) -> Answers:
        """Those of some rows: BOOL [rows], or INT64 positions."""
        return Answers(self.predicted[kept], None if self.confidence is None else self.confidence[kept])


class Source:
    """The examples of one model version and dataset. Raises `Invalid` where the two do not go together."""

    def __init__(self, folder: Path, card: ModelCard, dataset: Dataset, like: Path | None = None) -> None:
        """`like`: the folder of the version it was made from, whose training says what its own does not."""
        trained = _trained_on(folder) or (_trained_on(like) if like else {})
        target = trained.get("target") or dataset.target
        self._dataset, self._card = dataset, card
        self._transform = build(card.transform, folder)
        self._kind = str(self._transform.config["name"])
        self._metrics: tuple[Metric, ...]
        self._pair = ""  # the column of texts that belong to those embedded
        if self._kind == "text":  # embeddings have no right answer: what counts is how alike they make two texts
            self._target, self._labels, self._metrics = "", None, ("spearman",)
            self._features = tuple(self._feature_names())
            if dataset.target and dataset.feature(dataset.target).type == "text":
                self._pair, self._metrics = dataset.target, ("spearman", *FOUND)
            return
        if target is None:
            raise Invalid("The dataset has no target: accuracy cannot be measured. Import it with one.")
        self._target, self._labels = target, dataset.feature(target).names
        self._features = tuple(trained.get("inputs") or self._feature_names())
        self._metrics = self._judged()

    def examples(self, split: str, most: int | None = None, seed: int = 0, among: Array | None = None) -> Examples:
        """A split, or `most` rows of it drawn by `seed`, kept in order; `among`: only of those, INT64 positions. Raises
        `Invalid` where the split is empty."""
        columns, wanted = self._read(split)
        kept = np.arange(len(wanted)) if among is None else among
        if most is not None and most < len(kept):
            kept = kept[np.sort(np.random.default_rng(seed).choice(len(kept), most, replace=False))]
        if len(kept) < len(wanted):
            columns, wanted = {name: array[kept] for name, array in columns.items()}, wanted[kept]
        return Examples(self._engine_inputs(columns), wanted)

    def run(self, engine: BatchEngine, split: str, check: Callable[[], None] = lambda: None) -> tuple[Answers, Array]:
        """What a model answers to a whole split, and what was wanted. Rows are decoded as they are needed, so that it may be
        larger than memory takes once decoded; `check` is called before each batch."""
        columns, wanted = self._read(split)
        lengths = np.array([len(text) for text in columns[self._features[0]]]) if self._kind == "text" else None
        parts = []
        for at in (turns := _turns(len(wanted), lengths)):
            check()
            inputs = self._engine_inputs({name: values[at] for name, values in columns.items()})
            parts.append(self._answers(self._transform.after(engine.forward(inputs))))
        answers = self._whole(parts, turns)
        return answers, answers.predicted if self.metric == "spearman" else wanted

    def found(
        self, engine: BatchEngine, split: str, metric: Metric, check: Callable[[], None] = lambda: None
    ) -> tuple[Answers, Array]:
        """Of each row of a split one by the place at which the text that belongs to it comes among the different ones of all
        rows, by the cosine of embeddings; another text that is as near comes before it. And the texts that belong to the rows.
        Raises `Invalid` where there are so few that `metric` finds each."""
        columns = self._dataset.columns(split, [*self._features, self._pair])
        texts, first = columns[self._pair], FOUND[metric]
        different, belongs = np.unique(texts, return_inverse=True)  # rows may share one, which is searched once
        if (there := len(different)) <= first:
            raise Invalid(f"{metric} is 1 of any model: among {there} texts each is one of the first {first}. Give more rows.")
        ours, theirs = (self._embedded(engine, some, check) for some in (columns[self._features[0]], different))
        return Answers(1 / embeddings.places(ours, theirs, belongs, check)), texts

    def truth(self, examples: Examples, predicted: Callable[[], Array]) -> Examples:
        """The examples with what is wanted of texts: how alike the original makes them, `predicted` by it."""
        return replace(examples, wanted=predicted()) if self.metric == "spearman" else examples

    def cut(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Rows of texts without the places that none of them fills; anything else as it is."""
        mask = inputs.get("attention_mask") if self._kind == "text" else None
        width = None if mask is None else max(1, int(mask.sum(axis=1).max(initial=1)))
        return {name: array if width is None else np.ascontiguousarray(array[:, :width]) for name, array in inputs.items()}

    def typical(self, inputs: Mapping[str, Array], most: int) -> dict[str, Array]:
        """So many rows to time engines by: the first ones; of texts one of median length comes first."""
        rows = {name: array[:most] for name, array in inputs.items()}
        if self._kind != "text" or "attention_mask" not in rows:
            return rows
        order = np.argsort(rows["attention_mask"].sum(axis=1), kind="stable")
        median = int(order[len(order) // 2])
        places = [median, *(place for place in range(len(order)) if place != median)]
        return {name: array[places] for name, array in rows.items()}

    def fresh(self, split: str, others: Sequence[str], check: Callable[[], None] = lambda: None) -> Array:
        """BOOL [rows of `split`]: which of them, as the model is shown them, are in none of the splits `others` as well;
        `check` is called now and then."""
        there = [other for other in others if other in self._dataset.card.splits]
        seen = {row for other in there for row in self._contents(other, check)}
        return np.array([row not in seen for row in self._contents(split, check)], bool)

    @property
    def metric(self) -> Metric:
        """What the model is judged by where nobody says otherwise."""
        return self._metrics[0]

    def judges(self, asked: Metric | None) -> tuple[Metric, ...]:
        """The metric asked for, or the usual one, and what can be told beside it. Raises `Invalid` for one that these answers
        have no place for."""
        metric = asked or self.metric
        if metric not in self._metrics:
            pairs = (
                " (of texts that belong together: with a target of texts)" if self._kind == "text" and not self._pair else ""
            )
            raise Invalid(f"These answers are judged by {', '.join(self._metrics)}, not by {metric}{pairs}.")
        alike = next((group for group in (_TEXTS, FOUND) if metric in group and set(group) <= set(self._metrics)), ())
        return metric, *(other for other in alike if other != metric)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the target's classes, by position; None where it is a number or a text."""
        return self._labels

    @property
    def target(self) -> str:
        return self._target

    def predict(self, engine: BatchEngine, inputs: Mapping[str, Array], check: Callable[[], None] = lambda: None) -> Array:
        """One prediction a row, in the form of `Examples.wanted`; rows go through in bounded batches, before each of which
        `check` is called."""
        return self.answers(engine, inputs, check).predicted

    def answers(self, engine: BatchEngine, inputs: Mapping[str, Array], check: Callable[[], None] = lambda: None) -> Answers:
        """As `predict`, and how sure the model is."""
        rows, mask = len(next(iter(inputs.values()))), inputs.get("attention_mask") if self._kind == "text" else None
        parts = []
        for at in (turns := _turns(rows, None if mask is None else mask.sum(axis=1))):
            check()
            batch = self.cut({name: values[at] for name, values in inputs.items()})
            parts.append(self._answers(self._transform.after(engine.forward(batch))))
        return self._whole(parts, turns)

    def _whole(self, parts: Sequence[Answers], turns: Sequence[Array]) -> Answers:
        """The answers of all batches, in the order of their rows; of embeddings, how alike each row and another are."""
        whole = _joined(parts).only(np.argsort(np.concatenate(turns)))
        return Answers(embeddings.alike(whole.predicted)) if self.metric == "spearman" else whole

    def _read(self, split: str) -> tuple[dict[str, Array], Array]:
        """The columns that the model is shown, and the target."""
        columns = self._dataset.columns(split, [*self._features, *([self._target] if self._target else [])])
        wanted = columns.pop(self._target) if self._target else np.zeros(self._dataset.rows(split))
        if not len(wanted):
            needed = "optimising needs calibrate, select and report, evaluating needs report"
            raise Invalid(f"The split '{split}' of the dataset is empty: {needed}.")
        if wanted.dtype == object:
            return columns, _texts(wanted)
        return columns, wanted if self._labels else wanted.astype(np.float64)

    def _contents(self, split: str, check: Callable[[], None]) -> Iterator[tuple[Any, ...]]:
        """Each row of a split as the model is shown it, a row group at a time; a missing number is None, so that it equals
        another."""
        groups, first = Groups(self._dataset, split, self._features, held=0), 0
        for rows in filter(None, groups.rows):
            check()
            columns, first = groups.take(np.arange(first, first + rows)), first + rows
            yield from zip(*([None if v != v else v for v in columns[name].tolist()] for name in self._features), strict=True)

    def _feature_names(self) -> list[str]:
        """What the transform reads: the one image, its named columns, or all numbers in the dataset's order."""
        if self._kind == "image":
            return self._dataset.of_type("image")[:1] or _refuse("an image", self._dataset)
        if self._kind == "text":
            return self._dataset.of_type("text")[:1] or _refuse("texts", self._dataset)
        if self._kind == "columns":
            return [column["name"] for column in self._transform.config["columns"]]
        if self._card.inputs[0].datatype == "BYTES":
            there = self._dataset.of_type("text") or _refuse("texts", self._dataset)
            return [self._card.inputs[0].name] if self._card.inputs[0].name in there else there[:1]
        return self._dataset.of_type("float", "int") or _refuse("columns of numbers", self._dataset)

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that the model is shown."""
        return self._features

    @property
    def dataset(self) -> Dataset:
        return self._dataset

    @property
    def transform(self) -> Transform:
        return self._transform

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and deviation of the target in whose terms the model answers numbers."""
        known = self._transform.config if self._kind == "columns" else {}
        return float(known.get("mean", 0.0)), float(known.get("std", 1.0))

    def inputs(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Rows of the dataset's columns → the engine's inputs."""
        return self._engine_inputs(columns)

    def order(self) -> Array | None:
        """INT64: of each of the dataset's labels its position among the model's outputs; None where both count alike, or for
        numbers. Raises `Invalid` naming labels that the model does not have."""
        own = self._card.labels or self._transform.config.get("labels")
        if self._labels is None or own is None:
            return None
        if missing := [name for name in self._labels if name not in own]:
            raise Invalid(
                f"The dataset has the labels {', '.join(map(repr, missing[:10]))}, which the model does not have "
                f"({', '.join(map(repr, own[:10]))}): it cannot be trained on them."
            )
        found = np.array([list(own).index(name) for name in self._labels], np.int64)
        return None if (found == np.arange(len(found))).all() else found

    def _engine_inputs(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        if self._kind == "image":
            return self._transform.before({"image": columns[self._features[0]]})
        if self._kind == "text":
            return self._tokens(columns[self._features[0]])
        if self._kind == "columns":
            return self._transform.before(columns)
        spec = self._card.inputs[0]
        if spec.datatype == "BYTES" and len(self._card.inputs) == 1:
            texts = np.array([text.encode() for text in columns[self._features[0]]], object)
            return {spec.name: texts.reshape(-1, *([1] * (len(spec.shape or (-1,)) - 1)))}
        matrix = np.stack([columns[name] for name in self._features], axis=1).astype(DATATYPES[spec.datatype])
        if len(self._card.inputs) != 1 or (spec.shape is not None and spec.shape[1:] not in ((-1,), matrix.shape[1:])):
            takes = ", ".join(f"{s.name}{list(s.shape or ())}" for s in self._card.inputs)
            gives = f"one matrix of {matrix.shape[1]} columns ({', '.join(self._features)})"
            raise Invalid(f"The model takes {takes}; the dataset gives {gives}.")
        return {spec.name: matrix}

    def _tokens(self, texts: Array) -> dict[str, Array]:
        """In parts, since a call takes only so many tokens; filled up to the longest."""
        each = max(1, min(_CHUNK, MAX_CALL_TOKENS // int(self._transform.config["length"])))
        parts = [self._transform.before({"text": texts[i : i + each]}) for i in range(0, len(texts), each)]
        fills: Mapping[str, int] = getattr(self._transform, "ragged", {})
        width = {name: max(part[name].shape[1] for part in parts) for name in fills}
        return {
            name: np.concatenate([_filled(part[name], width[name], fill) for part in parts]) for name, fill in fills.items()
        }

    def _answers(self, outputs: Mapping[str, Array]) -> Answers:
        """Public outputs → answers. A plain tensor is a row of logits or of probabilities for labels, a number otherwise."""
        if self._kind == "text":
            (embedding,) = outputs.values()
            return Answers(embedding.astype(np.float64))
        if self._kind != "tensor":
            if self._labels is None:
                return Answers(outputs["prediction"].astype(np.float64))
            return _labelled(self._positions(outputs["label"]), outputs["scores"])
        values = outputs[self._card.outputs[0].name]
        if self._labels is None or self.writes:
            if values.size != len(values):
                what = "texts" if self.writes else "numbers"
                raise Invalid(f"The model answers {list(values.shape[1:])} {what} a row; '{self._target}' is one.")
            if self.writes:
                texts = _texts(values.reshape(-1))
                return Answers(self._positions(texts) if self._labels else texts)
            return Answers(values.reshape(-1).astype(np.float64))
        rows = values.reshape(len(values), -1)
        order = rows.argmax(axis=1)
        positions = self._positions(np.array(self._card.labels, object)[order]) if self._card.labels else order
        return _labelled(positions, rows if _are_shares(rows) else softmax(rows))

    @property
    def writes(self) -> bool:
        """Whether the model answers texts."""
        return self._kind == "tensor" and self._card.outputs[0].datatype == "BYTES"

    def _judged(self) -> tuple[Metric, ...]:
        """The metrics that fit the target and the answers, the usual one first."""
        if self._labels:
            return ("accuracy",)
        kind = self._dataset.feature(self._target).type
        if (kind == "text") != self.writes or kind not in ("text", "float", "int"):
            answers = "texts" if self.writes else "labels or numbers"
            raise Invalid(f"The dataset's target '{self._target}' is of type {kind}; the model answers {answers}.")
        if not self.writes:
            return ("r2",)
        usual = _USUAL.get(self._dataset.task, _TEXTS[0])
        return usual, *(metric for metric in _TEXTS if metric != usual)

    def _embedded(self, engine: BatchEngine, texts: Array, check: Callable[[], None]) -> Array:
        """FP64 [rows, dim]."""
        parts = []
        for at in (turns := _turns(len(texts), np.array([len(text) for text in texts]))):
            check()
            parts.append(self._answers(self._transform.after(engine.forward(self._tokens(texts[at])))).predicted)
        found: Array = np.concatenate(parts)[np.argsort(np.concatenate(turns))]
        return found

    def _positions(self, labels: Array) -> Array:
        """Names of labels → their positions in the dataset; -1, never right, for one that it does not have."""
        known = {name: position for position, name in enumerate(self._labels or ())}
        return np.array([known.get(v.decode() if isinstance(v, bytes) else str(v), -1) for v in labels], np.int64)


def _turns(rows: int, lengths: Array | None) -> list[Array]:
    """INT64 positions of rows by batch: as they come, or by length, so that few places of a batch of texts are only filled."""
    order = np.arange(rows) if lengths is None else np.argsort(lengths, kind="stable")
    return [order[i : i + _CHUNK] for i in range(0, rows, _CHUNK)]


def _joined(parts: Sequence[Answers]) -> Answers:
    sure = [part.confidence for part in parts if part.confidence is not None]
    whole = np.concatenate(sure) if len(sure) == len(parts) else None
    return Answers(np.concatenate([part.predicted for part in parts]), whole)


def _filled(array: Array, width: int, fill: int) -> Array:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)


def _texts(values: Array) -> Array:
    """Object array of `str`, without the whitespace around them; what is no UTF-8 is replaced."""
    return np.array([(v.decode(errors="replace") if isinstance(v, bytes) else str(v)).strip() for v in values], object)


def _labelled(positions: Array, scores: Array) -> Answers:
    best = scores.max(axis=1).astype(np.float64)
    known = np.isfinite(best)
    return Answers(np.where(known, positions, -1), np.where(known, best, 0.0))


def _are_shares(rows: Array) -> bool:
    """Whether each row is of probabilities already."""
    return bool(((rows >= 0) & (rows <= 1)).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))


def _trained_on(folder: Path) -> dict[str, Any]:
    """The columns that the config of a version's training names; none where it was not trained on columns of its choice."""
    path = folder / TRAINING
    config = json.loads(path.read_bytes()).get("config", {}) if path.is_file() else {}
    recipe = str(config.get("recipe"))
    named = {"module": ("inputs", "target"), "tabular": ("target",)}.get(recipe, ())
    given = config.get(recipe) or {}
    return {name: given.get(name) for name in named}


def _refuse(what: str, dataset: Dataset) -> list[str]:
    there = {name: feature.type for name, feature in dataset.features.items()}
    raise Invalid(f"The model takes {what}; the dataset has {there}.")
