"""The texts that a language model is rounded and judged by, as blocks of tokens, and how well it foretells them. A text that
judges is never one that anything was made or chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from modelyard.data.chats import messages
from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.optimisation.calibration import LEAST
from modelyard.optimisation.language.losses import Foretold
from modelyard.tensors import Array
from modelyard.training.recipes.causal_lm import find_column, predict
from modelyard.training.recipes.packing import IGNORED, Blocks, pack
from modelyard.training.recipes.texts import conversations, documents

LENGTH = 512  # tokens in a block, at most
_AT_ONCE = 1024  # tokens
_MOST_SHARED = 0.1  # of the texts of a split


@dataclass(frozen=True, slots=True)
class Texts:
    """A dataset's column of texts or chats, as the `tokenizer` cuts them."""

    dataset: Dataset
    column: str
    tokenizer: Any
    length: int

    @classmethod
    def of(cls, dataset: Dataset, tokenizer: Any, model: Any) -> Texts:
        """Raises `Invalid` where there is no such column."""
        known = getattr(model.config, "max_position_embeddings", None) or LENGTH
        return cls(dataset, find_column(dataset, None), tokenizer, min(LENGTH, int(known)))

    def blocks(
        self, split: str, others: Sequence[str], check: Callable[[], None], most: int | None = None, seed: int = 0
    ) -> tuple[Blocks, int]:
        """The blocks of a split, and how many of its texts were left out since they are in `others` as well; of them `most`,
        as `some`. Raises `Invalid` where there are too few, or many are such."""
        rows = self._rows(split)
        seen = {row for other in others for row in self._rows(other)}
        fresh = [row for row in rows if row not in seen]
        out = len(rows) - len(fresh)
        if out > _MOST_SHARED * len(rows):
            raise Invalid(
                f"{out:,} of {len(rows):,} texts of the split '{split}' are in {' or '.join(others)} as well: they prove "
                "nothing. Import a dataset whose splits share no rows."
            )
        if len(fresh) < LEAST:
            raise Invalid(f"The split '{split}' has {len(fresh)} texts; at least {LEAST} are needed: import more data.")
        found = pack(self._documents(fresh, check), self.length, self._padding, part=not self._chats)
        if not len(found.targets):
            raise Invalid(f"The split '{split}' has no text of two tokens in '{self.column}'.")
        return (found if most is None else some(found, most, seed)), out

    def _rows(self, split: str) -> list[str]:
        if split not in self.dataset.card.splits:
            return []
        return [text for text in self.dataset.column(split, self.column) if text]

    @property
    def _chats(self) -> bool:
        return self.dataset.feature(self.column).type == "chat"

    @property
    def _padding(self) -> int:
        token = self.tokenizer.pad_token_id
        return int(token if token is not None else self.tokenizer.eos_token_id or 0)

    def _documents(self, rows: list[str], check: Callable[[], None]) -> Any:
        if self._chats:
            return conversations(self.tokenizer, [messages(text) for text in rows], check)
        return documents(self.tokenizer, rows, check)


@torch.no_grad()
def foretell(model: Any, blocks: Blocks, check: Callable[[], None]) -> Foretold:
    """What each block's tokens cost, each foretold from those before it in its own document."""
    nats, tokens, likeliest = [], [], []
    each = max(1, _AT_ONCE // blocks.targets.shape[1])
    for at in range(0, len(blocks.targets), each):
        check()
        inputs, targets = (torch.from_numpy(part[at : at + each]) for part in (blocks.inputs, blocks.targets))
        logits, targets = predict(model, inputs), targets.long()
        cost = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        counted = targets != IGNORED
        nats.append(cost.view(targets.shape).sum(1).double().numpy())
        tokens.append(counted.sum(1).numpy())
        likeliest.append(logits.argmax(-1)[counted].numpy())
    return Foretold(np.concatenate(nats), np.concatenate(tokens), np.concatenate(likeliest), blocks.groups)


def some(blocks: Blocks, most: int, seed: int) -> Blocks:
    """So many blocks at most, drawn by `seed`, in order."""
    if len(blocks.targets) <= most:
        return blocks
    kept: Array = np.sort(np.random.default_rng(seed).choice(len(blocks.targets), most, replace=False))
    return Blocks(blocks.inputs[kept], blocks.targets[kept], blocks.cut, blocks.groups[kept])
