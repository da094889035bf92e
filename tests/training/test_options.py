"""What a training configuration refuses, the learning rate by step, and how the terms of the objective add up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.losses import distillation_loss, hard_loss, logit_regression_loss
from pipeline.softlabels import Dense
from pipeline.training import Objective, Recipe, TrainConfig
from pipeline.training.objective import Batch, Output
from pipeline.training.optimisation import learning_rate, make_optimizer

OUT = Path("run")
EVEN = ("residual=even",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.5}, "name a --cache or a --teacher"),
        ({"cache": "c", "teacher": "mlp-4"}, "either --cache or --teacher"),
        ({"weights": Path("w")}, "need --teacher"),
        ({"teacher": "mlp-4"}, "has random weights: name its --weights"),
        ({"cache": "c", "alpha": -1.0}, "--alpha should be 0 or more"),
        ({"cache": "c", "alpha": 1.5}, "or --beta given"),
        ({"beta": -0.1}, "--beta should be 0 or more"),
        ({"cache": "c", "alpha": 0.0, "beta": 0.0}, "nothing to learn"),
        ({"temperature": 0.0}, "--temperature should be above 0"),
        ({"label_view": "plain"}, "--label-view plain needs a --cache"),
        ({"cache": "c", "alpha": 1.0, "missing": "hard"}, "--missing hard needs a hard term"),
        ({"seeds": 0}, "--seeds should be at least 1"),
        ({"labelled_fraction": 0.0}, "--labelled-fraction should be above 0"),
        ({"train_views": "some"}, "--train-views should be plain, random, all or a number"),
        ({"train_views": "0"}, "--train-views should be"),
        ({"repeat": -1}, "--repeat should be 0 or more"),
        ({"cache": "c", "views": 2}, "--views is for runs without a cache"),
        ({"views": 2}, "--views and --transform go together"),
        ({"transform": "flip"}, "--views and --transform go together"),
        ({"epochs": 0}, "--epochs should be at least 1"),
        ({"window": 4, "first_window": 5}, "--first-window should be at most --window, 4"),
        ({"first_window": -1}, "--first-window should be at least 0"),
        ({"lr": 0.0}, "--lr should be above 0"),
        ({"warmup": 1.5}, "--warmup is a share"),
        ({"optimizer": "adam"}, "--optimizer should be one of adamw, sgd"),
        ({"loss": "mse"}, "--loss should be one of kl, logit-regression"),
        ({"missing": "maybe"}, "--missing should be one of"),
        ({"cache": "c", "loss_args": ("skew=0.1",)}, "--loss kl has no parameter 'skew': it has residual=one"),
        (
            {"cache": "c", "loss": "skewed-kl", "loss_args": ("skew=1",)},
            "skew of skewed-kl should be above 0 and below",
        ),
        ({"cache": "c", "loss": "dkd", "loss_args": ("others=x",)}, "others of dkd should be a number, 0 or more"),
        ({"cache": "c", "loss": "dist", "loss_args": ("inter=0,intra=0",)}, "all weights of dist are 0"),
        ({"cache": "c", "loss": "dkd", "loss_args": ("others",)}, "--loss-args should be key=value"),
        ({"cache": "c", "loss": "dkd", "loss_args": ("beta=nan",)}, "numbers in --loss-args should be finite"),
        ({"loss": "dkd"}, "--loss is of soft labels, and there are none"),
        ({"standardise": True}, "--standardise is of soft labels, and there are none"),
        ({"bare_topk": True}, "--bare-topk is of soft labels, and there are none"),
        ({"cache": "c", "bare_topk": True, "loss": "reverse-kl"}, "--loss reverse-kl is infinite .*--bare-topk: use"),
        ({"cache": "c", "bare_topk": True, "loss": "dkd"}, "--loss dkd is not defined .*one of kl, jensen-shannon, s"),
        ({"cache": "c", "bare_topk": True, "standardise": True}, "and --standardise needs the logits of all classes"),
        ({"labels": ("a", "b"), "bare_topk": True, "mix": "logits"}, "--mix logits needs dense ones: use --mix losses"),
        (
            {"teacher": "mlp-4", "weights": Path("w"), "bare_topk": True},
            "--bare-topk is of top-k labels, and a --teacher gives those of all",
        ),
        ({"cache": "c", "loss_args": ("residual=flat",)}, "residual of kl should be one of one, even; found 'flat'"),
        ({"cache": "c", "loss": "reverse-kl", "loss_args": EVEN}, "--loss reverse-kl has no parameter 'residual'"),
        ({"cache": "c", "loss_args": EVEN, "standardise": True}, "residual=even is of top-k labels, and --standardise"),
        ({"labels": ("a", "b"), "loss_args": EVEN}, "residual=even is of top-k labels, and --mix probs needs dense"),
        ({"cache": "c", "loss_args": EVEN, "bare_topk": True}, "residual=even spreads the residual that --bare-topk"),
        (
            {"teacher": "mlp-4", "weights": Path("w"), "loss_args": EVEN},
            "--loss-args residual=even is of top-k labels, and a --teacher gives those of all",
        ),
        ({"label_smoothing": 1.0}, "--label-smoothing should be 0 or more and below 1"),
        ({"cache": "c", "alpha": 1.0, "label_smoothing": 0.1}, "--label-smoothing is of the hard labels"),
        ({"labels": ("a", "b"), "standardise": True}, "--standardise is of logits, and --mix probs averages prob"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=OUT, **options)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(out=OUT, epochs=0, alpha=0.5, seeds=0, schedule="linear")
    assert len(raised.value.problems) == 4


def test_weights_of_the_terms_have_defaults_that_fit_the_labels() -> None:
    assert TrainConfig(out=OUT).objective == Objective(alpha=0.0, beta=1.0)
    assert TrainConfig(out=OUT, cache="c").objective.alpha == 0.9
    assert TrainConfig(out=OUT, cache="c").objective.beta == pytest.approx(0.1)
    assert TrainConfig(out=OUT, cache="c", alpha=0.3).objective.beta == 0.7
    assert TrainConfig(out=OUT, cache="c", alpha=2.0, beta=0.5).objective == Objective(alpha=2.0, beta=0.5)


def test_every_option_has_help() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata.get("help"), field.name


@given(step=st.integers(0, 99), schedule=st.sampled_from(["cosine", "onecycle", "constant"]), warmup=st.floats(0, 1))
def test_the_rate_never_leaves_its_range(step: int, schedule: str, warmup: float) -> None:
    rate = learning_rate(Recipe(schedule=schedule, warmup=warmup, lr=0.5), step, 100)
    assert 0 < rate <= 0.5


def test_schedules_have_their_shapes() -> None:
    def rates(**options: Any) -> np.ndarray:
        return np.array([learning_rate(Recipe(lr=1.0, **options), step, 100) for step in range(100)])

    cosine = rates(schedule="cosine")
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine[-1] < 0.001 and (np.diff(cosine) < 0).all()
    warm = rates(schedule="cosine", warmup=0.1)
    assert warm[:10].tolist() == pytest.approx([(i + 1) / 10 for i in range(10)]) and warm[10] == 1
    cycle = rates(schedule="onecycle")
    assert cycle[0] < 0.06 and cycle[29] == pytest.approx(1) and cycle[-1] < 0.001
    assert (np.diff(cycle[:30]) > 0).all() and (np.diff(cycle[30:]) < 0).all()
    assert (rates(schedule="constant") == 1).all()
    assert (rates(schedule="constant", warmup=0.5)[50:] == 1).all() and rates(schedule="constant", warmup=0.5)[0] < 0.1


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_weight_decay_spares_biases_and_norms(name: str, kind: type) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    model[3].bias.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe(optimizer=name, weight_decay=0.3, momentum=0.5))
    assert isinstance(optimizer, kind)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.3 for p in g["params"]}
    spared = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[3].weight)}
    assert spared == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing to train"):
        make_optimizer(nn.Flatten(), Recipe())


@pytest.mark.parametrize("loss", ["kl", "logit-regression"])
def test_each_row_counts_by_the_labels_it_has(loss: str) -> None:
    logits, teacher = torch.randn(4, 3), Dense(torch.randn(4, 3))
    labels = torch.tensor([0, -1, 2, -1])
    has_soft = torch.tensor([True, True, False, False])
    objective = Objective(alpha=0.7, beta=0.2, temperature=3.0, loss=loss)
    terms = objective(Output(logits), Batch(labels, teacher, has_soft))
    soft = (
        distillation_loss(logits, teacher, temperature=3.0) if loss == "kl" else logit_regression_loss(logits, teacher)
    )
    hard = hard_loss(logits, labels)
    assert terms.soft is not None and terms.hard is not None
    torch.testing.assert_close(terms.soft, soft[:2].sum())
    torch.testing.assert_close(terms.hard, hard[0] + hard[2])
    torch.testing.assert_close(terms.total, 0.7 * soft[:2].sum() + 0.2 * (hard[0] + hard[2]))


def test_terms_of_no_weight_are_not_computed() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    only_hard = Objective(alpha=0.0, beta=2.0)(Output(logits), Batch(labels))
    assert only_hard.soft is None
    torch.testing.assert_close(only_hard.total, 2 * hard_loss(logits, labels).sum())
    only_soft = Objective(alpha=1.0, beta=0.0)(Output(logits), Batch(labels, Dense(torch.zeros(2, 3))))
    assert only_soft.hard is None
    torch.testing.assert_close(only_soft.total, only_soft.soft)


def test_a_loss_over_the_batch_leaves_out_rows_without_soft_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels, has = torch.arange(6) % 4, torch.tensor([True, False, True, True, False, True])
    objective = Objective(alpha=1.0, beta=0.0, loss="dist")
    found = objective(Output(logits), Batch(labels, Dense(teacher), has))
    alone = objective(Output(logits[has]), Batch(labels[has], Dense(teacher[has])))
    torch.testing.assert_close(found.total, alone.total)
    none = Batch(labels, Dense(teacher), torch.zeros(6, dtype=torch.bool))
    assert objective(Output(logits), none).total == 0


def test_label_smoothing_and_standardised_logits_reach_the_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels = torch.arange(6) % 4
    smooth = Objective(alpha=0.0, beta=1.0, smoothing=0.2)(Output(logits), Batch(labels))
    logprobs = torch.log_softmax(logits, dim=1)
    expected = 0.8 * -logprobs.gather(1, labels[:, None])[:, 0] - 0.2 * logprobs.mean(dim=1)
    torch.testing.assert_close(smooth.total, expected.sum())
    standard = Objective(alpha=1.0, beta=0.0, temperature=2.0, standardise=True)
    scaled = standard(Output(logits * 5 + 3), Batch(labels, Dense(teacher)))
    plain = standard(Output(logits), Batch(labels, Dense(teacher)))
    torch.testing.assert_close(scaled.total, plain.total, rtol=1e-4, atol=1e-5)
