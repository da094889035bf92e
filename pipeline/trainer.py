"""Distillation from a cache inside the ``Trainer`` of Hugging Face transformers: a data set, a collator, a loss.

::

    labels = CachedRows(open_cache("caches/lm"), data)          # refused if the cache does not belong to this data

    class MyTrainer(DistillationMixin, transformers.Trainer): ...

    MyTrainer(
        model, args, train_dataset=labels.dataset(), data_collator=Collator(data, labels), alpha=0.9, temperature=2.0
    ).train()

An item of the data set is a row number. The collator, in the data loader's workers where there are some, loads the
tokens and fetches the soft labels of the batch's scored positions; they travel as one object under ``soft_labels``,
which the mixin takes out before the model sees the batch. Everything else is the Trainer's: accumulation of gradients,
mixed precision, devices, checkpoints. transformers is not imported here; tested with 5.23.

B sequences of T tokens, V classes; P scored positions of the batch, all sequences' one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, DataError
from pipeline.losses import distillation_loss, hard_loss
from pipeline.sampler import Order, Rows, blocks_of
from pipeline.softlabels import SoftLabels
from pipeline.sources.matching import Matching, match
from pipeline.sources.windows import PartTable
from pipeline.store import Cache

IGNORED = -100
"""What transformers writes where a label does not count; ``NO_LABEL`` (-1) here."""


class TokenData(Protocol):
    """What is needed of a token data set (``pipeline.datasets``)."""

    def load(self, row: int) -> Tensor:
        """(T,) int64 token ids, padded on the right."""

    def targets(self, rows: Rows) -> npt.NDArray[np.int64]:
        """(n, T): the next token at each scored position, -1 elsewhere."""


class RowNumbers(TorchDataset[int]):
    """Dataset rows as the items of a data set."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


class CachedRows:
    """Soft labels of some rows of a dataset, in any order, out of the cache that belongs to it.

    ``data``: the dataset, held against the cache by ``match``, or the result of that. Reading touches the chunks that
    hold the rows: ``sampler`` visits them so that a chunk is read while it is still in the page cache.
    """

    def __init__(self, cache: Cache, data: Dataset | Matching, *, split: str = "train", view: int = 0) -> None:
        self.cache, self.view = cache, view
        self.matching = data if isinstance(data, Matching) else match(cache, data, split)

    def __call__(self, rows: Rows) -> SoftLabels:
        """Labels of the scored positions of ``rows`` (n,), as numpy. Raises CacheMismatchError where one has none."""
        entries = self.matching.entries(rows)
        return self.cache.decode(self.cache.read_rows(self.matching.split, self.view, entries))

    def dataset(self) -> RowNumbers:
        """The rows to train on."""
        return RowNumbers(self.matching.rows)

    def sampler(self, *, seed: int = 0, window: int = 8) -> PartSampler:
        """Shuffled within windows of so many parts of the cache: what ``DistillationMixin`` takes as ``sampler``."""
        table = PartTable(self.cache, self.matching.split, self.view)
        parts = table.part_of(self.matching.entries(self.matching.rows))
        return PartSampler(blocks_of(np.arange(len(parts)), parts), seed=seed, window=window)


class PartSampler(Sampler[int]):
    """Places in ``CachedRows.dataset()``, in an ``Order`` that depends on the seed and the epoch alone."""

    def __init__(self, blocks: Sequence[Rows], *, seed: int = 0, window: int = 8) -> None:
        self.order = Order(blocks, 1, seed=seed, window=window)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.order.examples

    def __iter__(self) -> Iterator[int]:
        for _, rows in self.order.windows(self.epoch):
            yield from rows.tolist()


class Collator:
    """Row numbers to a batch: ``input_ids`` and the labels of its scored positions.

    - ``input_ids`` (B, T'): cut after the last token that anything scored depends on. Padding is on the right, so a
      causal model needs no attention mask;
    - ``shift_labels`` (B, T'): the next token at each scored position, -100 elsewhere, as transformers names it;
    - ``labels`` (B, T'): the same one place to the right, as transformers has it, for ``compute_metrics``; without the
      last target of a sequence of T tokens, which has no place there;
    - ``soft_labels``: ``soft_of(rows)`` on the host, P rows.
    """

    def __init__(self, data: TokenData, soft_of: Callable[[Rows], SoftLabels]) -> None:
        self.data, self.soft_of = data, soft_of

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Raises DataError when labels and scored positions differ in number."""
        numbers = np.asarray(rows, np.int64)
        targets = self.data.targets(numbers)
        scored = targets >= 0
        soft = self.soft_of(numbers)
        if len(soft) != int(scored.sum()):
            raise DataError(
                f"rows {numbers.tolist()[:8]} have {int(scored.sum())} scored positions; the cache holds labels for "
                f"{len(soft)}. It was made from other tokens, another packing or another mask"
            )
        ends = np.flatnonzero(scored.any(axis=0))
        length = min(targets.shape[1], int(ends[-1]) + 2 if len(ends) else 1)
        shifted = np.where(scored, targets, IGNORED)[:, :length]
        labels = np.full_like(shifted, IGNORED)
        labels[:, 1:] = shifted[:, :-1]
        return {
            "input_ids": torch.stack([self.data.load(int(row))[:length] for row in numbers]),
            "labels": torch.from_numpy(labels),
            "shift_labels": torch.from_numpy(np.ascontiguousarray(shifted)),
            "soft_labels": soft.map(torch.from_numpy),
        }


def token_loss(
    logits_BTV: Tensor,
    soft: SoftLabels,
    targets_BT: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    items: Tensor | float | None = None,
    loss: Callable[..., Tensor] = distillation_loss,
) -> Tensor:
    """``sum over scored positions of alpha * loss(soft) + (1 - alpha) * cross-entropy(hard)``, over ``items``: ().

    ``targets_BT`` is -100 where nothing is scored; ``items`` the scored positions of all batches whose gradients are
    accumulated (those of this one by default), so that each position counts the same whatever batch it is in.
    ``loss(logits_PV, soft, temperature=T)`` gives (P,). In float32, or float64 where the logits are.

    Raises what the losses raise: logits of another vocabulary, a temperature that was not kept.
    """
    scored = targets_BT != IGNORED
    logits_PV = logits_BTV[scored]
    total = logits_PV.new_zeros((), dtype=torch.float64 if logits_PV.dtype == torch.float64 else torch.float32)
    if alpha:
        soft = soft.map(lambda array: array.to(logits_PV.device, non_blocking=True))
        total = total + alpha * loss(logits_PV, soft, temperature=temperature).sum()
    if alpha != 1:
        total = total + (1 - alpha) * hard_loss(logits_PV, targets_BT[scored]).sum()
    return total / (len(logits_PV) if items is None else items)


class DistillationMixin:
    """Stands before ``transformers.Trainer`` among the bases of a class: ``class T(DistillationMixin, Trainer)``.

    - ``alpha``, ``temperature``, ``loss``: see ``token_loss``;
    - ``sampler``: the order of the training rows (``CachedRows.sampler``); the Trainer's own by default.

    Raises ConfigError for what would be ignored: ``compute_loss_func``, ``label_smoothing_factor``.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.5,
        temperature: float = 1.0,
        loss: Callable[..., Tensor] = distillation_loss,
        sampler: Sampler[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= alpha <= 1 or not temperature > 0:
            raise ConfigError(f"alpha should be 0 to 1 and temperature above 0; found {alpha} and {temperature}")
        if kwargs.get("compute_loss_func") is not None:
            raise ConfigError("compute_loss_func is this mixin's own; give it loss, of soft labels")
        self._options = {"alpha": alpha, "temperature": temperature, "loss": loss}
        self._sampler = sampler
        self._soft: tuple[SoftLabels, Tensor] | None = None
        # As compute_loss_func, so that the Trainer counts the labels of all accumulated batches and scales once.
        super().__init__(*args, compute_loss_func=self._token_loss, **kwargs)  # type: ignore[call-arg]
        smoothing = getattr(self, "args", None) and self.args.label_smoothing_factor  # type: ignore[attr-defined]
        if smoothing:
            raise ConfigError("label_smoothing_factor has no effect here: soft labels are smooth, hard ones are kept")

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the soft labels taken out of the batch before the model sees it."""
        rest = dict(inputs)
        missing = [name for name in ("soft_labels", "shift_labels", "labels") if name not in rest]
        if missing:
            raise ConfigError(f"a batch should come from pipeline.trainer.Collator; this one has no {missing[0]}")
        self._soft = rest.pop("soft_labels"), rest.pop("shift_labels")
        try:
            return super().compute_loss(model, rest, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._soft = None

    def _token_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if self._soft is None:
            raise RuntimeError("the loss is computed within compute_loss")
        soft, targets = self._soft
        return token_loss(logits, soft, targets, items=num_items_in_batch, **self._options)  # type: ignore[arg-type]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self._sampler is not None:
            return self._sampler
        return super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
