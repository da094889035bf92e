"""The training loop: one model, one seed, from the first step or from where it was stopped.

A step costs what its arithmetic costs: nothing is read back from the device until an epoch ends, and labels and inputs
are ready before they are asked for. A run that was stopped and goes on gives the same weights, bit for bit on one
machine, as one that was not: order, views, learning rate and dropout depend on the step alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.devices import autocast
from pipeline.errors import ModelError
from pipeline.identity import digest, view_seed
from pipeline.models import logits_of
from pipeline.progress import Bar, Progress, Silent
from pipeline.sampler import Order
from pipeline.training.interruption import Interruption
from pipeline.training.objective import Terms
from pipeline.training.optimisation import learning_rate, make_optimizer
from pipeline.training.ranks import AGREE_STEPS, ALONE, Ranks
from pipeline.training.recipe import Recipe, outcome_options
from pipeline.training.state import Position, load_state, save_state
from pipeline.training.task import Task

LOG_SECONDS = 2.0
VALIDATION_BATCHES = 4
"""Validation batches are this many times as long as training ones: nothing is kept for a backward pass."""


@dataclass(frozen=True)
class Fitted:
    """What a fit did; the model itself holds the weights that were asked for.

    ``history`` has per finished epoch: epoch, view, lr (of its last step), loss, hard, soft (means per example,
    unweighted, 0 for an example without), accuracy and nll on validation. ``best_epoch`` is best on validation,
    ``kept_epoch`` the one whose weights were kept. ``seconds`` are of this process.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    kept_epoch: int
    steps: int
    seconds: float
    examples: int
    figures: dict[str, float] = field(default_factory=dict)


StepHook = Callable[[int, Tensor], None]


def fit(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    state: Path | None = None,
    progress: Progress | None = None,
    description: str = "train",
    on_step: StepHook | None = None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train ``model`` in place, on ``task.device``, and leave it in eval mode with the weights to keep.

    With several ``ranks``, each calls this with the same arguments; ``recipe.accumulate`` counts the batches of all of
    them, and rank 0 saves. ``state`` is where the training state is saved and looked for. ``on_step(step, loss)`` is
    called after each optimiser step with the loss it took, a scalar.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once the step in hand is done and the state is saved; ModelError
    when the loss is no longer finite.
    """
    return _Fit(model, task, recipe, seed, state, progress or Silent(), on_step, ranks).run(description)


class _Fit:
    """The parts of one fit, so that each is a short function."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        seed: int,
        state: Path | None,
        progress: Progress,
        on_step: StepHook | None,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.task, self.recipe, self.state, self.progress, self.on_step = task, recipe, state, progress, on_step
        self.model = model.to(task.device)
        ranks.shard(self.model)
        self.forward: Callable[[Tensor], Any] = torch.compile(model) if recipe.compile else model
        self.stepping = ranks.spread(model, self.forward)
        self.optimizer = make_optimizer(model, recipe)
        self.order = Order(
            task.blocks,
            recipe.batch_size,
            seed=seed,
            window=recipe.window,
            first_window=recipe.first_window,
            drop_last=recipe.drop_last,
            rank=ranks.rank,
            world=ranks.world,
        )
        self.batches = self.order.all_batches
        self.visits = self.batches * recipe.batch_size if recipe.drop_last else self.order.examples
        self.steps_per_epoch = -(-self.batches // recipe.accumulate)
        if not self.steps_per_epoch:
            raise ModelError(
                f"an epoch of {self.order.examples} examples has no whole batch of {recipe.batch_size}: leave out "
                "--drop-last"
            )
        if recipe.accumulate % ranks.world:
            raise ModelError(f"{ranks.world} ranks cannot share {recipe.accumulate} batches of a step evenly")
        self.labels = torch.from_numpy(task.labels).to(task.device)
        self.has_soft = self._has_soft()
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        self.losses = _Losses()
        self.examples = 0
        self.saved_at = self.logged_at = time.monotonic()
        self.signature = digest([outcome_options(recipe), seed, self.order.examples])
        torch.manual_seed(seed)
        if state is not None and (loaded := load_state(state, self.signature, model, self.optimizer, task.device)):
            self.position, self.best = loaded.position, loaded.best
            self.losses = _Losses(loaded.losses if ranks.rank == 0 else None)
        if ranks.rank:
            torch.manual_seed(view_seed(seed, f"step {self.position.step}", ranks.rank))  # dropout of its own

    def _has_soft(self) -> Tensor | None:
        """(N,) which rows have soft labels, on the device; None when all that are visited do."""
        if self.task.source is None:
            return None
        everything = np.arange(len(self.task.labels), dtype=np.int64)
        has = self.task.source.has(everything)
        if all(has[block].all() for block in self.task.blocks):
            return None
        return torch.from_numpy(has).to(self.task.device)

    def run(self, description: str) -> Fitted:
        started = time.perf_counter()
        total, done = (
            self.recipe.epochs * self.batches,
            self.position.epoch * self.batches + self.position.batch,
        )
        with Interruption() as interruption, self.progress.bar(description, total, "batches", done) as bar:
            while self.position.epoch < self.recipe.epochs and not self._patience_is_out():
                self._epoch(interruption, bar)
                self._close_epoch(description)
                self._save_if(interruption, always=True)
        kept = self.position.epoch - 1
        if self.recipe.keep == "best" and self.best is not None:
            self.model.load_state_dict(self.best)
            kept = self.position.best_epoch
        self.ranks.gather(self.model)
        self.model.eval()
        return Fitted(
            history=self.position.history,
            best_epoch=self.position.best_epoch,
            kept_epoch=kept,
            steps=self.position.step,
            seconds=time.perf_counter() - started,
            examples=self.examples,
            figures={k: v for k, v in self.position.history[kept].items() if k in ("accuracy", "nll")},
        )

    def _patience_is_out(self) -> bool:
        return bool(self.recipe.patience) and self.position.epoch > 0 and self.position.stale >= self.recipe.patience

    def _epoch(self, interruption: Interruption, bar: Bar) -> None:
        """The rest of the current epoch, from ``position.batch`` on."""
        task, recipe, position = self.task, self.recipe, self.position
        view = task.train_views[position.epoch % len(task.train_views)]
        self.model.train()
        # Inputs first: their workers fork before the thread of the labels starts.
        world, start = self.ranks.world, position.batch // self.ranks.world
        inputs = task.inputs.stream(self.order, position.epoch, start, view)
        labels = task.source.stream(self.order, position.epoch, start, view) if task.source is not None else None
        terms: list[Terms] = []
        numbers = range(position.batch + self.ranks.rank, self.batches, world)
        with closing(labels) if labels is not None else nullcontext():
            for batch, rows in zip(numbers, self.order.epoch(position.epoch, start), strict=True):
                x = next(inputs)
                soft = labels.next(x, rows) if labels is not None else None
                index = torch.from_numpy(rows).to(task.device, non_blocking=True)
                has_soft = None if self.has_soft is None else self.has_soft[index]
                end = self._end_of_step(batch)
                last = batch + world >= end
                short = last and self._is_short(end)
                with self.ranks.apart(self.stepping, last and not short):
                    with autocast(task.device, recipe.precision):
                        logits = logits_of(self.stepping(x))
                    found = task.objective(logits, self.labels[index], soft, has_soft)
                    # Ranks average their gradients, and each has only its own rows of the step.
                    (found.total / self._rows_of_step(batch) * world).backward()  # type: ignore[no-untyped-call]
                terms.append(found)
                self.examples += len(rows)
                bar.update(min(world, self.batches - batch))
                if not last:
                    continue
                if short:
                    self._idle_pass(x)
                self._step(terms, batch)
                terms = []
                position.batch = end
                if end < self.batches:
                    self._save_if(interruption)
        next(inputs, None)  # tells the workers of a DataLoader that the epoch has ended
        if position.batch < self.batches:  # the last step of the epoch has no batch for this rank
            self._idle_pass(next(task.inputs.stream(self.order, position.epoch, 0, view)))
            self._step([], position.batch)
            position.batch = self.batches

    def _end_of_step(self, batch: int) -> int:
        """The batch after the last of the optimiser step that ``batch`` is part of."""
        return min((batch // self.recipe.accumulate + 1) * self.recipe.accumulate, self.batches)

    def _is_short(self, end: int) -> bool:
        """Whether rank 0 has a batch more than this rank in the step that ends before batch ``end``."""
        count = end - (end - 1) // self.recipe.accumulate * self.recipe.accumulate
        return 0 < count % self.ranks.world <= self.ranks.rank

    def _idle_pass(self, x: Tensor) -> None:
        """Take part in a step as often as rank 0 does, with inputs that weigh nothing."""
        with self.ranks.apart(self.stepping, True):
            with autocast(self.task.device, self.recipe.precision):
                logits = logits_of(self.stepping(x))
            (logits.float().sum() * 0).backward()  # type: ignore[no-untyped-call]

    def _rows_of_step(self, batch: int) -> int:
        """Rows of the optimiser step that ``batch`` is part of."""
        effective = self.recipe.batch_size * self.recipe.accumulate
        first = batch // self.recipe.accumulate * effective
        return min(effective, self.visits - first)

    def _step(self, terms: list[Terms], batch: int) -> None:
        position = self.position
        rate = learning_rate(self.recipe, position.step, self.recipe.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        for found in terms:
            self.losses.add(found)
        if self.on_step is not None:
            own = torch.stack([torch.zeros(()), *(t.total.detach().cpu() for t in terms)]).sum()[None]
            self.on_step(position.step, self.ranks.rows(own).sum() / self._rows_of_step(batch))
        position.step += 1

    def _close_epoch(self, description: str) -> None:
        """Validate, record the epoch, and note whether it is the best so far."""
        position = self.position
        total, hard, soft = _Losses(self.ranks.rows(self.losses.tensor())).sums()
        record: dict[str, Any] = {
            "epoch": position.epoch,
            "view": self.task.train_views[position.epoch % len(self.task.train_views)],
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": total / self.visits,
        }
        if self.task.objective.beta:
            record["hard"] = hard / self.visits
        if self.task.source is not None:
            record["soft"] = soft / self.visits
        if len(self.task.validation):
            record["accuracy"], record["nll"] = self._validate()
            score = (record["accuracy"], -record["nll"])
            if position.best is None or score > position.best:
                position.best, position.best_epoch = score, position.epoch
                if self.recipe.keep == "best":
                    self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if not all(math.isfinite(value) for value in record.values()):
            raise ModelError(
                f"{description}: loss or outputs were no longer finite in epoch {position.epoch + 1}. Lower --lr "
                f"(found {self.recipe.lr:g}), or look at the inputs"
            )
        position.history.append(record)
        self.losses = _Losses()
        position.epoch, position.batch = position.epoch + 1, 0
        if time.monotonic() - self.logged_at > LOG_SECONDS or position.epoch == self.recipe.epochs:
            self.logged_at = time.monotonic()
            figures = ", ".join(f"{k} {v:.4f}" for k, v in record.items() if k not in ("epoch", "view", "lr"))
            self.progress.log(f"{description}: epoch {position.epoch}/{self.recipe.epochs}: {figures}")

    def _validate(self) -> tuple[float, float]:
        """Accuracy and mean negative log-likelihood (nats) on the validation rows."""
        task = self.task
        size, ranks = self.recipe.batch_size * VALIDATION_BATCHES, self.ranks
        order = Order((task.validation,), size, shuffle=False, rank=ranks.rank, world=ranks.world)
        ranks.same_buffers(self.model)
        labels = torch.from_numpy(task.validation_labels).to(task.device)
        found: list[Tensor] = []
        self.model.eval()
        with torch.no_grad():
            for rows, x in zip(order.epoch(0), task.validation_inputs.stream(order, 0, 0, 0), strict=True):
                with autocast(task.device, self.recipe.precision):
                    logits = logits_of(self.forward(x)).float()
                expected = labels[torch.from_numpy(rows).to(task.device)]
                hits = (logits.argmax(dim=1) == expected).sum()
                found.append(torch.stack([hits, functional.cross_entropy(logits, expected, reduction="sum")]))
            if ranks.sharded and len(found) < -(-order.all_batches // ranks.world):
                whole = Order((task.validation,), size, shuffle=False)
                self.forward(next(task.validation_inputs.stream(whole, 0, 0, 0)))  # as often as rank 0
        both = ranks.rows(torch.stack(found).cpu() if found else torch.zeros(0, 2)).double()
        return int(both[:, 0].sum()) / order.examples, math.fsum(both[:, 1].tolist()) / order.examples

    def _save_if(self, interruption: Interruption, *, always: bool = False) -> None:
        """Save the state when it is time to; after an interruption, stop. Ranks agree on both, now and then."""
        if self.ranks.world > 1 and not always and self.position.step % AGREE_STEPS:
            return
        every = self.recipe.checkpoint_every
        stop, due = self.ranks.any(
            interruption.requested, self.ranks.rank == 0 and bool(every) and time.monotonic() - self.saved_at > every
        )
        if self.state is not None and (stop or due):
            losses = self.ranks.rows(self.losses.tensor())
            kept = (self.position, self.model, self.optimizer, self.best, losses)
            save_state(self.state, self.signature, *kept, write=self.ranks.rank == 0)
            self.saved_at = time.monotonic()
        if stop:
            raise KeyboardInterrupt


class _Losses:
    """The terms of each batch of an epoch, kept on the device and added up exactly, in whatever order, at its end."""

    CHUNK = 1024

    def __init__(self, before: Tensor | None = None) -> None:
        self._done = [] if before is None else [before]
        self._open: Tensor | None = None
        self._used = 0

    def add(self, terms: Terms) -> None:
        if self._open is None:
            # One block for many batches: small tensors kept between the large ones of a step would stop the
            # allocator from using the memory of past batches again.
            self._open = torch.zeros(self.CHUNK, 3, device=terms.total.device)
        for column, value in enumerate(terms):
            if value is not None:
                self._open[self._used, column] = value.detach()
        self._used += 1
        if self._used == self.CHUNK:
            self._done, self._open, self._used = [self.tensor()], None, 0

    def tensor(self) -> Tensor:
        """(batches, 3) float32 on the host: objective, hard and soft sums of each batch."""
        rows = [*self._done]
        if self._open is not None:
            rows.append(self._open[: self._used].cpu())
        return torch.cat(rows) if rows else torch.zeros(0, 3)

    def sums(self) -> tuple[float, float, float]:
        """The exact sums of the three columns; NaN when a value is not finite."""
        kept = self.tensor()
        if not bool(torch.isfinite(kept).all()):
            return math.nan, math.nan, math.nan
        total, hard, soft = (math.fsum(column) for column in kept.T.tolist())
        return total, hard, soft
