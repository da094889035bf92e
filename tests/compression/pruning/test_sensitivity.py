"""A scan prunes one group at a time; ratios that follow from it cost every group the same and meet the budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.compression import pruning
from pipeline.compression.pruning.sensitivity import HIGHEST
from pipeline.errors import ModelError
from pipeline.models.macs import count_macs
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")


def scanned(losses: dict[str, list[tuple[float, float]]]) -> pruning.Scan:
    """A scan of an original that scores 1, from losses by group and ratio."""
    rows = [pruning.Sensed(name, ratio, 1, 1, 1 - loss) for name, points in losses.items() for ratio, loss in points]
    return pruning.Scan(1.0, 1, 1, tuple(rows))


def test_a_scan_has_a_row_for_each_group_and_ratio_and_changes_one_group_at_a_time() -> None:
    model, example, classes = architectures.vit()
    expected = model(example).detach()
    prepared: list[nn.Module] = []

    def score(pruned: nn.Module) -> float:
        with torch.no_grad():
            return -float((pruned(example) - expected).abs().mean())

    scan = pruning.sensitivity(model, example, [0.5, 0.1], score, classes=classes, prepare=prepared.append)
    groups = pruning.groups_of(model, example, classes=classes)
    assert [(row.layer, row.ratio) for row in scan.rows] == [(g.name, r) for g in groups for r in (0.1, 0.5)]
    assert (scan.score, scan.parameters, scan.macs) == (0.0, parameter_count(model), count_macs(model, example))
    by_key = {(row.layer, row.ratio): row for row in scan.rows}
    heads = by_key["layers.0.attention.qkv", 0.1]  # a tenth of four heads is none
    assert (heads.score, heads.parameters, heads.macs) == (scan.score, scan.parameters, scan.macs)
    half = by_key["layers.0.mlp.0", 0.5]
    assert scan.parameters - half.parameters == 32 * (32 + 1 + 32)
    assert scan.macs - half.macs == 17 * 32 * 64
    assert half.score < 0
    assert len(prepared) == len(groups) * 2 - 2


def test_each_group_is_pruned_as_far_as_its_own_loss_allows() -> None:
    scan = scanned({
        "robust": [(0.25, 0.0), (0.5, 0.0), (0.75, 0.01)],
        "fragile": [(0.25, 0.1), (0.5, 0.2), (0.75, 0.4)],
        "lucky": [(0.25, 0.1), (0.5, -0.3), (0.75, 0.2)],
        "free": [(0.25, 0.0), (0.75, -0.1)],
    })  # fmt: skip
    assert pruning.ratios_at(scan, 0.05) == pytest.approx(
        {"robust": HIGHEST, "fragile": 0.125, "lucky": 0.125, "free": HIGHEST}
    )
    assert pruning.ratios_at(scan, 0.1) == pytest.approx(
        {"robust": HIGHEST, "fragile": 0.25, "lucky": 0.5, "free": HIGHEST}
    ), "a loss never falls where more is taken: what gained by luck counts as what lost before"
    assert pruning.ratios_at(scan, 0.005)["robust"] == pytest.approx(0.625)
    assert pruning.ratios_at(scan, 0.5)["fragile"] == pytest.approx(0.875)
    assert pruning.ratios_at(scan, 0.0)["fragile"] == 0


def test_ratios_meet_a_budget_and_take_more_from_what_hurts_less() -> None:
    model, example, classes = architectures.resnet()
    names = [group.name for group in pruning.groups_of(model, example, classes=classes)]
    hurt = {name: 0.02 * (1 + i) for i, name in enumerate(names)}
    scan = scanned({name: [(0.25, hurt[name]), (0.75, 4 * hurt[name])] for name in names})
    ratios = pruning.ratios_from(scan, model, example, classes=classes, target_macs=0.6)
    pruned = pruning.prune(model, example, classes=classes, ratio=0.0, ratios=ratios)
    assert 0.5 < count_macs(pruned, example) / count_macs(model, example) <= 0.6
    assert list(ratios) == names
    assert sorted(ratios.values(), reverse=True) == list(ratios.values())
    assert ratios[names[0]] > ratios[names[-1]] + 0.2


def test_a_budget_out_of_reach_is_an_error_and_one_beyond_the_scan_is_met() -> None:
    model, example, classes = architectures.resnet()
    names = [group.name for group in pruning.groups_of(model, example, classes=classes)]
    scan = scanned({name: [(0.1, 1e-6 if name != names[0] else 1.0)] for name in names})
    ratios = pruning.ratios_from(scan, model, example, classes=classes, target_parameters=0.05)
    pruned = pruning.prune(model, example, classes=classes, ratio=0.0, ratios=ratios)
    assert parameter_count(pruned) <= 0.05 * parameter_count(model)
    with pytest.raises(ModelError, match="no ratios reach"):
        pruning.ratios_from(scan, model, example, classes=classes, target_parameters=0.001)
    with pytest.raises(ModelError, match="needs target"):
        pruning.ratios_from(scan, model, example, classes=classes)


def test_a_scan_of_nothing_is_an_error() -> None:
    model, example, classes = architectures.resnet()
    with pytest.raises(ModelError, match="0 ratios"):
        pruning.sensitivity(model, example, [], lambda model: 0.0, classes=classes)
    with pytest.raises(ModelError, match="0 groups"):
        pruning.sensitivity(
            nn.Sequential(nn.Flatten(), nn.Linear(768, 7)), example, [0.5], lambda model: 0.0, classes=classes
        )
    with pytest.raises(ModelError, match="below 1"):
        pruning.sensitivity(model, example, [1.5], lambda model: 0.0, classes=classes)
