"""Steps that prune: however it is said how much leaves, a model that was measured anew and fine-tuned comes out."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from torch import nn

from pipeline.compression import pruning
from pipeline.compression.finetuning import Tuning, epochs_of
from pipeline.compression.pruning.structured import Between
from pipeline.compression.steps import HEADS, RATIO, TWO_OF_FOUR, WEIGHTS, Prune
from pipeline.compression.workshop import Product, Workshop, model_of
from pipeline.errors import ModelError
from pipeline.evaluation.table import Row

SCANNED = (0.25, 0.5, 0.75)
"""Ratios of a sensitivity scan."""


class Pruning:
    """The ways of saying how much leaves, each ending in a model that was measured anew and fine-tuned."""

    def __init__(self, step: Prune, source: Product, shop: Workshop, row: Row, ratios: dict[str, float]) -> None:
        self.step, self.source, self.shop, self.row, self.ratios = step, source, shop, row, ratios
        self.model = model_of(source, "pruning")
        self.tuning = shop.tuning(step.labels)
        self.epochs = shop.config.epochs if step.epochs is None else step.epochs
        self.options: dict[str, Any] = {
            "classes": shop.classes,
            "importance": step.importance,
            "scope": step.scope,
            "multiple": step.multiple,
            "heads": "whole" if step.what == HEADS else "none",
            "losses": self.tuning.losses if step.importance == "taylor" else None,
            "seed": shop.config.seed,
        }
        if step.what == HEADS:
            self.options["ratios"] = self._channels_stay()

    def product(self) -> Product:
        step = self.step
        if step.what in (WEIGHTS, TWO_OF_FOUR):
            return self._sparse()
        if step.max_drop is not None:
            return self._within()
        found = self._at_once()
        if self.source.sparse and self.epochs:
            self.row.warnings.append(
                f"zeros of {self.source.name} were trained away: make weights zero after channels left"
            )
        self.row.what = f"{self._removed()}{_trained(self.epochs, self.tuning)}"
        return Product(step.name, self._tuned(found))

    def _channels_stay(self) -> dict[str, float]:
        """Ratios of 0 for all that are no heads. Raises ModelError for a model without heads."""
        groups = pruning.groups_of(self.model, self.shop.example, classes=self.shop.classes, heads="whole")
        if all(group.kind != "heads" for group in groups):
            raise ModelError(
                f"{type(self.model).__name__} has no attention heads that can leave. Prune its channels: `what` = "
                "'channels'"
            )
        return {group.name: 0.0 for group in groups if group.kind != "heads"}

    def _removed(self) -> str:
        units = "attention heads" if self.step.what == HEADS else "channels"
        ratio = self.ratios.get(self.step.name)
        share = "by layer, after a scan," if ratio is None else f"{ratio:.0%} of the {units}"
        return f"{share} removed by {self.step.importance}"

    def _at_once(self) -> nn.Module:
        """Pruned, in rounds where there are several; not yet tuned after the last."""
        step, shop, options = self.step, self.shop, dict(self.options)
        targets: dict[str, Any] = {"target_macs": step.target_macs, "target_parameters": step.target_parameters}
        more: dict[str, Any] = {"rounds": step.rounds, "between": self._between()}
        if step.sensitivity:
            options["ratios"] = self._scanned(targets)
            return pruning.prune(self.model, shop.example, ratio=0.0, **more, **options)
        if any(targets.values()):
            found = pruning.prune_to(self.model, shop.example, **targets, **more, **options)
            self.ratios[step.name] = found.ratio
            return found.model
        if step.like and step.like not in self.ratios:
            raise ModelError(f"takes the ratio of {step.like}, which was skipped")
        ratio = self.ratios[step.like] if step.like else RATIO if step.ratio is None else step.ratio
        self.ratios[step.name] = ratio
        return pruning.prune(self.model, shop.example, ratio=ratio, **more, **options)

    def _scanned(self, targets: dict[str, Any]) -> dict[str, float]:
        """Ratios by layer that cost each of them the same; the scan goes into the row."""
        step, shop = self.step, self.shop
        ranking = {key: value for key, value in self.options.items() if key not in ("classes", "scope", "multiple")}
        scan = pruning.sensitivity(
            self.model, shop.example, SCANNED, shop.validation_accuracy,
            classes=shop.classes, prepare=shop.recalibrated, **ranking,
        )  # fmt: skip
        self.row.scan = [asdict(sensed) for sensed in scan.rows]
        if not any(targets.values()):
            targets = {"target_parameters": 1 - (RATIO if step.ratio is None else step.ratio)}
        return pruning.ratios_from(scan, self.model, shop.example, classes=shop.classes, **targets, **ranking)

    def _between(self) -> Between:
        """What happens between two rounds: a share of the epochs."""
        epochs = self.epochs // self.step.rounds

        def between(model: nn.Module) -> nn.Module:
            return self._tuned(model, epochs, resumable=False)

        return between

    def _within(self) -> Product:
        """As much as the drop in accuracy allows."""
        step, shop = self.step, self.shop

        def accuracy_after(model: nn.Module) -> float:
            model.load_state_dict(self._tuned(model, resumable=False).state_dict())
            accuracy = shop.validation_accuracy(model)
            shop.progress.log(f"{step.name}: {accuracy:.2%} on validation")
            return accuracy

        best, trials = pruning.prune_within(
            self.model, shop.example,
            accuracy=shop.validation_accuracy(self.model), max_drop=step.max_drop or 0.0,
            accuracy_after=accuracy_after, trials=step.trials, rounds=step.rounds, between=self._between(),
            **self.options,
        )  # fmt: skip
        self.row.scan = [asdict(trial) for trial in trials]
        if best is None:
            tried = ", ".join(f"{trial.ratio:.0%}: {trial.accuracy:.2%}" for trial in trials)
            raise ModelError(f"no share of the channels can leave within max_drop {step.max_drop:g} ({tried})")
        self.ratios[step.name] = best.ratio
        self.row.what = f"{self._removed()}{_trained(self.epochs, self.tuning)}; the most within {step.max_drop:.2%}"
        return Product(step.name, best.model.eval())

    def _sparse(self) -> Product:
        step, shop = self.step, self.shop
        masks: dict[str, Any]
        if step.what == TWO_OF_FOUR:
            masks = pruning.nm_masks(self.model, shop.example, classes=shop.classes)
            zeros = "two of every four weights"
        else:
            share = RATIO if step.ratio is None else step.ratio
            scope: Any = step.scope
            masks = pruning.magnitude_masks(self.model, shop.example, classes=shop.classes, share=share, scope=scope)
            zeros = f"{share:.0%} of the weights"
        model = copy.deepcopy(self.model)
        pruning.apply_masks(model, masks)
        model = self._tuned(model)
        pruning.remove_masks(model)
        self.row.what = f"{zeros} zero, the smallest{_trained(self.epochs, self.tuning)}"
        self.row.warnings.append("zeros are stored and multiplied like other weights: no runtime here gains from them")
        return Product(step.name, model, sparse=True)

    def _tuned(self, model: nn.Module, epochs: int | None = None, *, resumable: bool = True) -> nn.Module:
        self.shop.recalibrated(model)
        epochs = self.epochs if epochs is None else epochs
        if not epochs:
            return model
        state = self.shop.state(self.step.name) if resumable else None
        return self.tuning.train(model, self.step.name, epochs=epochs, lr=self.step.lr, state=state)


def _trained(epochs: int, tuning: Tuning) -> str:
    return f", {epochs_of(epochs)} on {tuning.labels}" if epochs else ""
