"""One step of a recipe: from a product and a declaration to the next product, noting in the row what it is."""

from __future__ import annotations

import copy

from pipeline.compression import pruning
from pipeline.compression.finetuning import epochs_of
from pipeline.compression.pruned import Pruning
from pipeline.compression.quantised import exported, quantised
from pipeline.compression.steps import Export, Finetune, Prune, Quantise, Scratch, Step
from pipeline.compression.workshop import Product, Workshop, model_of
from pipeline.evaluation.table import Row


def perform(steps: tuple[Step, ...], source: Product, shop: Workshop, row: Row, ratios: dict[str, float]) -> Product:
    """Do the last of ``steps`` on ``source``, which the others made.

    ``ratios``: of the pruning steps before, by name; a step that prunes adds its own. Raises ModelError or
    MissingDependencyError where it cannot be done.
    """
    step = steps[-1]
    if isinstance(step, Prune):
        return Pruning(step, source, shop, row, ratios).product()
    if isinstance(step, Finetune):
        return _finetuned(step, source, shop, row)
    if isinstance(step, Scratch):
        return _scratch(step, source, shop, row)
    if isinstance(step, Quantise):
        return quantised(step, source, shop, row, steps)
    if isinstance(step, Export):
        return exported(step, source, shop, row, steps)
    raise TypeError(f"{type(step).__name__} makes nothing")


def _finetuned(step: Finetune, source: Product, shop: Workshop, row: Row) -> Product:
    model = copy.deepcopy(model_of(source, "fine-tuning"))
    masks = pruning.masks_of_zeros(model, shop.example, classes=shop.classes) if source.sparse else {}
    if masks:
        pruning.apply_masks(model, masks)
    epochs = shop.config.epochs if step.epochs is None else step.epochs
    tuning = shop.tuning(step.labels)
    model = tuning.train(model, step.name, epochs=epochs, lr=step.lr, state=shop.state(step.name))
    if masks:
        pruning.remove_masks(model)
    row.what = f"{source.name}, {epochs_of(epochs, 'more ')} on {tuning.labels}"
    return Product(step.name, model, sparse=source.sparse)


def _scratch(step: Scratch, source: Product, shop: Workshop, row: Row) -> Product:
    fresh = pruning.reinitialise(model_of(source, "training from scratch"), shop.config.seed)
    epochs = shop.config.epochs if step.epochs is None else step.epochs
    tuning = shop.tuning(step.labels)
    row.what = f"the shape of {source.name} from random weights, {tuning.labels}"
    return Product(step.name, tuning.from_scratch(fresh, step.name, epochs, shop.state(step.name)))
