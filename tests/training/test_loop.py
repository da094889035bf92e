"""The loop: it learns, it accumulates exactly, it stops and keeps what it is told to, and it resumes bit for bit."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.training import Fitted, TrainConfig, fit, prepare
from pipeline.training.interruption import Interruption
from pipeline.training.state import load_state

Make = Callable[..., TrainConfig]


def student(dropout: float = 0.3, norm: bool = True) -> nn.Module:
    torch.manual_seed(7)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def train(config: TrainConfig, model: nn.Module, **options: Any) -> tuple[Fitted, list[float]]:
    losses: list[float] = []
    hook = options.pop("on_step", None)

    def on_step(step: int, loss: Tensor) -> None:
        losses.append(float(loss))
        if hook is not None:
            hook(step, loss)

    return fit(model, prepare(config).task, config, seed=3, on_step=on_step, **options), losses


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("cached", "loss"), [(True, "kl"), (True, "logit-regression"), (False, "kl")])
def test_it_learns(config: Make, cached: bool, loss: str) -> None:
    options = config(cached=cached, loss=loss, epochs=25, alpha=1.0 if cached else None)
    fitted, losses = train(options, student(dropout=0.0))
    assert fitted.history[-1]["loss"] < 0.5 * fitted.history[0]["loss"]
    assert len(losses) == fitted.steps == 25 * 7
    if not cached:
        assert fitted.figures["accuracy"] > 0.8


def test_a_record_of_an_epoch_adds_up(config: Make) -> None:
    fitted, losses = train(config(alpha=0.75, epochs=2, train_views="all"), student())
    for number, record in enumerate(fitted.history):
        assert record["loss"] == pytest.approx(0.75 * record["soft"] + 0.25 * record["hard"], rel=1e-5)
        sizes = torch.tensor([8.0] * 6 + [2.0])
        steps = torch.tensor(losses[7 * number : 7 * number + 7])
        assert record["loss"] == pytest.approx(float((steps * sizes).sum() / 50), rel=1e-5)
        assert (record["epoch"], record["view"]) == (number, number)


def test_validation_is_what_one_would_compute(config: Make) -> None:
    options = config(epochs=3)
    prepared = prepare(options)
    model = student()
    fitted = fit(model, prepared.task, options, seed=0)
    dataset, rows = prepared.dataset, prepared.task.validation
    inputs = torch.stack([dataset.prepare(dataset.load(int(row))) for row in rows])
    labels = torch.from_numpy(dataset.labels[rows])
    assert not model.training
    with torch.no_grad():
        logits = model(inputs)
    last = fitted.history[-1]
    assert last["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert last["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("soft", [True, False])
def test_accumulation_is_exact(config: Make, soft: bool) -> None:
    models = []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        model = student(dropout=0.0, norm=False)
        options = config(
            cached=soft, batch_size=batch_size, accumulate=accumulate, labelled_fraction=0.5, optimizer="sgd", lr=0.1
        )
        fitted, _ = train(options, model)
        assert fitted.steps == 4 * (7 if soft else 6)
        models.append(model)
    for other in models[1:]:
        torch.testing.assert_close(dict(models[0].state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-6)


def test_equal_seeds_give_equal_weights_and_others_do_not(config: Make) -> None:
    models = [student() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, prepare(config()).task, config(), seed=seed)
    assert states_equal(models[0], models[1]) and not states_equal(models[0], models[2])


@pytest.mark.parametrize(
    "options",
    [
        {"resident": "none"},
        {"resident": "ram"},
        {"resident": "device"},
        {"resident_inputs": "none"},
        {"resident_inputs": "ram"},
        {"resident_inputs": "none", "workers": 2},
    ],
)
def test_where_labels_and_inputs_are_kept_changes_nothing(config: Make, options: dict[str, Any]) -> None:
    models = [student(), student()]
    for model, extra in zip(models, ({}, options), strict=True):
        train(config(train_views="all", **extra), model)
    assert states_equal(*models)


def test_drop_last_leaves_short_batches_out(config: Make) -> None:
    fitted, losses = train(config(drop_last=True, epochs=2), student())
    assert fitted.steps == len(losses) == 2 * 6
    assert fitted.history[0]["loss"] == pytest.approx(sum(losses[:6]) / 6, rel=1e-5)
    with pytest.raises(ModelError, match="no whole batch"):
        train(config(drop_last=True, batch_size=64), student())


def test_patience_stops_and_best_weights_are_kept(config: Make) -> None:
    # A rate that is far too high after the first steps: validation gets worse.
    options = config(epochs=40, patience=3, keep="best", lr=0.5, cached=False)
    model = student()
    fitted, _ = train(options, model)
    assert len(fitted.history) == fitted.best_epoch + 4 < 40
    assert fitted.kept_epoch == fitted.best_epoch
    scores = [(r["accuracy"], -r["nll"]) for r in fitted.history]
    assert scores[fitted.best_epoch] == max(scores) and fitted.figures["accuracy"] == max(scores)[0]
    shorter = student()
    fit(shorter, prepare(options).task, dataclasses.replace(options, patience=0, keep="last"), seed=3)
    last = train(dataclasses.replace(options, keep="last"), student())[0]
    assert last.kept_epoch == last.best_epoch + 3
    assert not states_equal(model, shorter)


def test_a_loss_that_explodes_is_named(config: Make) -> None:
    with pytest.raises(ModelError, match=r"no longer finite in epoch 1. Lower --lr \(found 1e\+30"):
        train(config(lr=1e30, optimizer="sgd"), student(norm=False))


def test_half_precision_and_compiled_models_train(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, half = student(dropout=0.0), student(dropout=0.0)
    train(config(), plain)
    fitted, _ = train(config(precision="bfloat16"), half)
    assert all(p.dtype == torch.float32 for p in half.parameters()) and not states_equal(plain, half)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    other = student(dropout=0.0)
    train(config(compile=True), other)
    assert compiled == [other] and states_equal(plain, other)


# Interruptions.

RECIPES: dict[str, dict[str, Any]] = {
    "cache": {"train_views": "all", "resident": "none"},
    "cache, a small first window": {"train_views": "all", "resident": "none", "first_window": 1},
    "cache, labels kept": {"train_views": "all"},
    "cache, kept best, sgd": {"keep": "best", "optimizer": "sgd", "lr": 0.1, "schedule": "onecycle"},
    "cache, accumulating": {"accumulate": 3, "batch_size": 4, "resident": "ram"},
    "inputs loaded each time": {"train_views": "random", "resident_inputs": "none"},
    "hard labels": {"cached": False},
    "patience": {"patience": 2, "keep": "best", "lr": 0.5},
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(config: Make, tmp_path: Path, name: str) -> None:
    options = config(**RECIPES[name])
    whole = student()
    expected, losses = train(options, whole)
    for stops in ((0,), (3, 4, 11), (6, 13), (9, expected.steps - 1)):
        state = tmp_path / f"{stops[0]}.safetensors"
        found: list[float] = []

        for stop in (*stops, None):

            def interrupt(step: int, loss: Tensor, stop: int | None = stop, found: list[float] = found) -> None:
                found.append(float(loss))
                if step == stop:
                    os.kill(os.getpid(), signal.SIGTERM if step % 2 else signal.SIGINT)

            model = student()
            with torch.no_grad():
                model[1].weight.fill_(9.0)  # whatever it holds, the state replaces it
            if stop == stops[0]:
                model = student()
            if stop is None:
                torch.rand(17)  # and whatever the process drew before
                fitted = train(options, model, state=state, on_step=interrupt)[0]
            else:
                with pytest.raises(KeyboardInterrupt):
                    train(options, model, state=state, on_step=interrupt)
                assert state.is_file()
        assert states_equal(whole, model), stops
        assert fitted.history == expected.history and fitted.steps == expected.steps
        assert found == losses


def test_a_crash_resumes_from_the_last_saved_state(config: Make, tmp_path: Path) -> None:
    options = config(checkpoint_every=1e-9, train_views="all")
    whole = student()
    expected, _ = train(options, whole)
    state = tmp_path / "state.safetensors"

    def crash(step: int, loss: Tensor) -> None:
        if step == 10:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(options, student(), state=state, on_step=crash)
    steps: list[int] = []
    model = student()
    fitted, _ = train(options, model, state=state, on_step=lambda step, loss: steps.append(step))
    assert steps[0] == 10 and states_equal(whole, model) and fitted.history == expected.history


def test_signals_are_put_back_and_a_second_one_acts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_training_in_another_thread_leaves_signals_alone(config: Make) -> None:
    results: list[Fitted] = []
    thread = threading.Thread(target=lambda: results.append(train(config(epochs=1), student())[0]))
    thread.start()
    thread.join()
    assert results[0].steps == 7


def saved(config: TrainConfig, state: Path) -> None:
    def stop(step: int, loss: Tensor) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, student(), state=state, on_step=stop)


def test_a_state_of_another_run_is_refused(config: Make, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    saved(config(), state)
    with pytest.raises(ConfigError, match="another run"):
        train(config(lr=0.5), student(), state=state)
    with pytest.raises(ConfigError, match="another run"):
        fit(student(), prepare(config()).task, config(), seed=4, state=state)


@pytest.mark.parametrize("damage", ["truncate", "pickle", "empty"])
def test_a_damaged_state_is_refused_and_nothing_in_it_runs(config: Make, tmp_path: Path, damage: str) -> None:
    state = tmp_path / "state.safetensors"
    saved(config(), state)
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"model": student().state_dict()}, state)
    else:
        state.write_bytes(b"")
    with pytest.raises(ConfigError, match="not a training state"):
        train(config(), student(), state=state)


def test_no_state_is_no_error(tmp_path: Path) -> None:
    model = student()
    optimizer = torch.optim.SGD(model.parameters())
    assert load_state(tmp_path / "none", "x", model, optimizer, torch.device("cpu")) is None


def test_tied_weights_survive_a_resume(config: Make, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(36, 36)
            self.second = nn.Linear(36, 36)
            self.second.weight = self.first.weight
            self.head = nn.Linear(36, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(torch.relu(self.first(x.flatten(1)))))

    def made() -> nn.Module:
        torch.manual_seed(0)
        return Tied()

    whole, model = made(), made()
    train(config(), whole)
    state = tmp_path / "state.safetensors"

    def stop(step: int, loss: Tensor) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config(), made(), state=state, on_step=stop)
    train(config(), model, state=state)
    assert states_equal(whole, model) and model.second.weight is model.first.weight


class Watching:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.total, self.done, self.lines = 0, 0, []

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Watching]:
        self.total, self.done = total, done
        yield self

    def update(self, n: int = 1) -> None:
        self.done += n

    def log(self, line: str) -> None:
        self.lines.append(line)


def test_progress_counts_batches_from_where_it_starts(config: Make, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    saved(config(), state)
    watching = Watching()
    train(config(), student(), state=state, progress=watching)
    assert watching.total == watching.done == 4 * 7
    assert any("epoch 4/4" in line and "accuracy" in line for line in watching.lines)
