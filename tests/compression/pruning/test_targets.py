"""Budgets are met and by no more than they have to; a search within a drop trains as often as it may and no more."""

from __future__ import annotations

import pytest
from torch import nn

from pipeline.compression import pruning
from pipeline.compression.pruning.targets import STEPS
from pipeline.errors import ModelError
from pipeline.models.macs import count_macs
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_smallest_ratio_that_meets_a_budget_of_macs(name: str, scope: pruning.Scope) -> None:
    model, example, classes = getattr(architectures, name)()
    found = pruning.prune_to(model, example, classes=classes, target_macs=0.5, scope=scope)
    assert found.macs == count_macs(found.model, example) / count_macs(model, example) <= 0.5
    less = pruning.prune(model, example, classes=classes, ratio=found.ratio - 1 / STEPS, scope=scope)
    assert count_macs(less, example) > 0.5 * count_macs(model, example)


def test_parameters_and_both() -> None:
    model, example, classes = architectures.resnet()
    few = pruning.prune_to(model, example, classes=classes, target_parameters=0.2)
    assert few.parameters == parameter_count(few.model) / parameter_count(model) <= 0.2
    both = pruning.prune_to(model, example, classes=classes, target_parameters=0.2, target_macs=0.9)
    assert both.ratio == few.ratio
    rounds: list[nn.Module] = []
    slowly = pruning.prune_to(
        model, example, classes=classes, target_parameters=0.2, rounds=3, between=lambda m: rounds.append(m) or m
    )
    assert (slowly.ratio, slowly.macs, slowly.parameters, len(rounds)) == (few.ratio, few.macs, few.parameters, 2)


def test_budgets_that_make_no_sense_or_are_out_of_reach() -> None:
    model, example, classes = architectures.native()
    for options, message in (
        ({}, "needs target_macs or target_parameters"),
        ({"target_macs": 1.0}, "MACs should be a share"),
        ({"target_parameters": 0.0}, "parameters should be a share"),
        ({"target_macs": 0.1}, "no ratio reaches the target"),
    ):
        with pytest.raises(ModelError, match=message):
            pruning.prune_to(model, example, classes=classes, **options)


def test_the_search_finds_the_largest_ratio_within_the_drop() -> None:
    model, example, classes = architectures.resnet()
    limit = 0.62 * parameter_count(model)
    seen: list[int] = []

    def accuracy_after(pruned: nn.Module) -> float:
        """Good down to a size, and bad below it."""
        seen.append(parameter_count(pruned))
        return 0.9 if seen[-1] >= limit else 0.7

    best, trials = pruning.prune_within(
        model, example, classes=classes, accuracy=0.91, max_drop=0.02, accuracy_after=accuracy_after, trials=6
    )
    assert best is not None and len(trials) == len(seen) == 6
    assert trials[0].ratio == 0.45
    assert parameter_count(best.model) == min(count for count in seen if count >= limit)
    assert best.ratio == max(trial.ratio for trial in trials if trial.accuracy == 0.9)
    assert all(trial.ratio > best.ratio for trial in trials if trial.accuracy == 0.7)


def test_a_search_in_which_nothing_is_good_enough_finds_none() -> None:
    model, example, classes = architectures.resnet()
    options = {"classes": classes, "accuracy": 0.9, "max_drop": 0.01, "accuracy_after": lambda model: 0.1}
    best, trials = pruning.prune_within(model, example, trials=2, **options)
    assert best is None
    assert [trial.ratio for trial in trials] == [0.45, 0.225]
    for wrong, message in (({"trials": 0}, "trials"), ({"highest": 1.0}, "highest"), ({"max_drop": -1}, "max_drop")):
        with pytest.raises(ModelError, match=message):
            pruning.prune_within(model, example, **(options | wrong))
