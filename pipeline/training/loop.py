"""The training loop: one model, one seed, from the first step or from where it was stopped.

A step costs what its arithmetic costs: nothing is read back from the device until an epoch ends, and labels and inputs
are ready before they are asked for. A run that was stopped and goes on gives the same weights, bit for bit on one
machine, as one that was not: order, views, learning rate and dropout depend on the step alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.devices import autocast
from pipeline.errors import ModelError
from pipeline.identity import digest, view_seed
from pipeline.models import logits_of
from pipeline.progress import Bar, Progress, Silent
from pipeline.sampler import Order
from pipeline.training.causal import CausalLearner
from pipeline.training.counting import Counts
from pipeline.training.fitted import DivergedError, Fitted
from pipeline.training.hinted import Hinted
from pipeline.training.interruption import Interruption
from pipeline.training.members import Members
from pipeline.training.objective import Batch, Goal, Objective, Output, Terms
from pipeline.training.optimisation import learning_rate, make_optimizer
from pipeline.training.ranks import AGREE_STEPS, ALONE, Ranks
from pipeline.training.recipe import Recipe, outcome_options
from pipeline.training.state import Position, load_state, save_state
from pipeline.training.supply import Supply
from pipeline.training.tally import Tally, plain
from pipeline.training.task import Task
from pipeline.training.validation import validate

LOG_SECONDS = 2.0

StepHook = Callable[[int, Tensor], None]
EpochHook = Callable[[int, nn.Module], None]


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
    on_epoch: EpochHook | None = None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train ``model`` in place, on ``task.device``, and leave it in eval mode with the weights to keep.

    With several ``ranks``, each calls this with the same arguments; ``recipe.accumulate`` counts the batches of all of
    them, and rank 0 saves. ``state`` is where the training state is saved and looked for. ``on_step(step, loss)`` is
    called after each optimiser step with the loss it took, a scalar; ``on_epoch(epochs, model)`` with the number of
    finished epochs before the state that counts them is saved, so that a run that goes on has called it for all.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once the step in hand is done and the state is saved;
    DivergedError, a ModelError, when the loss is no longer finite.
    """
    fitting = _Fit(model, task, recipe, seed, state, progress or Silent(), on_step, on_epoch, ranks)
    try:
        return fitting.run(description)
    finally:
        fitting.close()


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
        on_epoch: EpochHook | None,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.task, self.recipe, self.state, self.progress, self.on_step = task, recipe, state, progress, on_step
        self.on_epoch = on_epoch
        self.model = model.to(task.device)
        self.members = model.count if isinstance(model, Members) else 0
        self.learner = self._learner(seed)
        ranks.shard(self.learner)
        self.forward: Callable[..., Any] = torch.compile(self.learner) if recipe.compile else self.learner
        self.stepping = ranks.spread(self.learner, self.forward)
        self.optimizer = make_optimizer(self.learner, recipe)
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
        self.counts = Counts(self.order, recipe, None if task.sequences is None else task.sequences.lengths)
        self.steps_per_epoch = -(-self.batches // recipe.accumulate)
        if not self.steps_per_epoch:
            raise ModelError(
                f"an epoch of {self.order.examples} examples has no whole batch of {recipe.batch_size}: leave out "
                "--drop-last"
            )
        if recipe.accumulate % ranks.world:
            raise ModelError(f"{ranks.world} ranks cannot share {recipe.accumulate} batches of a step evenly")
        self.supply = Supply(task, self.order)
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        self.losses = Tally()
        self.examples = 0
        self.saved_at = self.logged_at = time.monotonic()
        self.signature = digest([outcome_options(recipe), seed, self.order.examples])
        torch.manual_seed(seed)
        if state is not None and (
            loaded := load_state(state, self.signature, self.learner, self.optimizer, task.device)
        ):
            self.position, self.best = loaded.position, loaded.best
            self.losses = Tally(loaded.losses if ranks.rank == 0 else None)
        if ranks.rank:
            torch.manual_seed(view_seed(seed, f"step {self.position.step}", ranks.rank))  # dropout of its own

    def _learner(self, seed: int) -> nn.Module:
        """What is trained: the model, with projections beside it where hints are learnt."""
        task = self.task
        if task.sequences is not None:
            return CausalLearner(self.model, fused=self.recipe.fused_loss and self._fusible())
        if task.hints is None or task.objective.hints is None:
            return self.model
        return Hinted(self.model, task.objective.hints, task.hints.shapes, task.example.to(task.device), seed)

    def _fusible(self) -> bool:
        """Whether the loss can be had of hidden states and a head; ranks that share weights hold none whole."""
        objective = self.task.objective
        return isinstance(objective, Objective) and objective.fusible and not self.ranks.sharded

    def close(self) -> None:
        """Leave the model without taps."""
        if isinstance(self.learner, Hinted):
            self.learner.close()

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
                if self.on_epoch is not None:
                    self.on_epoch(self.position.epoch, self.model)
                self._save_if(interruption, always=True)
        kept = self.position.epoch - 1
        if self.recipe.keep == "best" and self.best is not None:
            self.learner.load_state_dict(self.best)
            kept = self.position.best_epoch
        self.ranks.gather(self.learner)
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
        task, position = self.task, self.position
        view = task.train_views[position.epoch % len(task.train_views)]
        objective = task.objective.at(position.epoch)
        self.learner.train()
        world, start = self.ranks.world, position.batch // self.ranks.world
        terms: list[Terms] = []
        numbers = range(position.batch + self.ranks.rank, self.batches, world)
        with closing(self.supply.epoch(objective, position.epoch, start, view)) as supply:
            for batch, (x, known) in zip(numbers, supply, strict=True):
                end = self._end_of_step(batch)
                last = batch + world >= end
                short = last and self._is_short(end)
                with self.ranks.apart(self.stepping, last and not short):
                    found = self._terms(objective, self._output(x, known), known)
                    # Ranks average their gradients, and each has only its own rows of the step.
                    (found.total.sum() / self.counts.step(position.epoch, batch) * world).backward()  # type: ignore[no-untyped-call]
                terms.append(found)
                self.examples += len(x)
                bar.update(min(world, self.batches - batch))
                if not last:
                    continue
                if short:
                    self._idle_pass(x, objective)
                self._step(terms, batch)
                terms = []
                position.batch = end
                if end < self.batches:
                    self._save_if(interruption)
        if position.batch < self.batches:  # the last step of the epoch has no batch for this rank
            self._idle_pass(next(task.inputs.stream(self.order, position.epoch, 0, view)), objective)
            self._step([], position.batch)
            position.batch = self.batches

    def _output(self, x: Tensor, known: Batch) -> Output:
        """What the student gives for ``x``, in training."""
        with autocast(self.task.device, self.recipe.precision):
            if self.task.sequences is not None:
                found = self.stepping(x, known.index)
            else:
                found = self.stepping(x) if known.hints is None else self.stepping(x, known.hints)
        return found if isinstance(found, Output) else Output(logits_of(found))

    def _terms(self, objective: Goal, output: Output, known: Batch) -> Terms:
        """The loss, outside autocast; but a head that is fused with it makes logits in the student's own precision."""
        with autocast(self.task.device, "float32" if output.head is None else self.recipe.precision):
            return objective(output, known)

    def _end_of_step(self, batch: int) -> int:
        """The batch after the last of the optimiser step that ``batch`` is part of."""
        return min((batch // self.recipe.accumulate + 1) * self.recipe.accumulate, self.batches)

    def _is_short(self, end: int) -> bool:
        """Whether rank 0 has a batch more than this rank in the step that ends before batch ``end``."""
        count = end - (end - 1) // self.recipe.accumulate * self.recipe.accumulate
        return 0 < count % self.ranks.world <= self.ranks.rank

    def _idle_pass(self, x: Tensor, objective: Goal) -> None:
        """Take part in a step as often as rank 0 does, with inputs that weigh nothing."""
        hints = None
        if self.task.hints is not None and objective.hints is not None:
            shapes = self.task.hints.shapes
            hints = {name: x.new_zeros((len(x), *shapes[name])) for name, _ in objective.hints.pairs}
        with self.ranks.apart(self.stepping, True):
            output = self._output(x, Batch(x.new_empty(0), hints=hints))
            values = [output.logits, *(side for pair in output.hints.values() for side in pair)]
            values += [each for each in output.head or () if each is not None]
            sum((value.float().sum() * 0 for value in values), torch.zeros(())).backward()  # type: ignore[no-untyped-call]

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
            own = torch.stack([torch.zeros(()), *(t.total.detach().sum().cpu() for t in terms)]).sum()[None]
            self.on_step(position.step, self.ranks.rows(own).sum() / self.counts.step(position.epoch, batch))
        position.step += 1

    def _close_epoch(self, description: str) -> None:
        """Validate, record the epoch, and note whether it is the best so far."""
        position = self.position
        sums = Tally(self.ranks.rows(self.losses.tensor())).sums()
        visits = self.counts.epoch(position.epoch)
        record: dict[str, Any] = {
            "epoch": position.epoch,
            "view": self.task.train_views[position.epoch % len(self.task.train_views)],
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": plain(sums["total"] / visits),
        }
        objective = self.task.objective.at(position.epoch)
        record |= {name: plain(sums[name] / visits) for name in objective.used}
        if len(self.task.validation):
            how = self.learner, self.forward, self.task, self.recipe
            record["accuracy"], record["nll"] = (plain(figure) for figure in validate(*how, self.ranks, self.members))
            # Of several members none is the one to choose by.
            score = (record["accuracy"], -record["nll"]) if not self.members else None
            if score is not None and (position.best is None or score > position.best):
                position.best, position.best_epoch = score, position.epoch
                if self.recipe.keep == "best":
                    self.best = {name: value.detach().clone() for name, value in self.learner.state_dict().items()}
        finite = np.logical_and.reduce(np.broadcast_arrays(*(np.isfinite(value) for value in record.values())))
        if not finite.all():
            raise DivergedError(
                f"{description}: loss or outputs were no longer finite in epoch {position.epoch + 1}. Lower --lr "
                f"(found {self.recipe.lr:g}), or look at the inputs",
                tuple(np.flatnonzero(~finite).tolist()),
            )
        position.history.append(record)
        self.losses = Tally()
        position.epoch, position.batch = position.epoch + 1, 0
        if time.monotonic() - self.logged_at > LOG_SECONDS or position.epoch == self.recipe.epochs:
            self.logged_at = time.monotonic()
            means = {k: float(np.mean(v)) for k, v in record.items() if k not in ("epoch", "view", "lr")}
            figures = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            self.progress.log(f"{description}: epoch {position.epoch}/{self.recipe.epochs}: {figures}")

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
            kept = (self.position, self.learner, self.optimizer, self.best, losses)
            save_state(self.state, self.signature, *kept, write=self.ranks.rank == 0)
            self.saved_at = time.monotonic()
        if stop:
            raise KeyboardInterrupt
