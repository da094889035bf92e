"""Masks: which weights become zero, that they stay so whatever an optimiser does, and that nothing of them is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.compression import pruning
from pipeline.compression.pruning.masks import maskable
from pipeline.errors import ModelError
from pipeline.models import load_weights, logits_of, save_weights
from pipeline.models.macs import count_nonzeros
from pipeline.runs import parameter_count
from tests import architectures


def made(name: str) -> architectures.Made:
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    return getattr(architectures, name)()


@pytest.mark.parametrize("name", [*architectures.EVERY, "native"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_smallest_share_is_zero_and_nothing_else_changes(name: str, scope: pruning.Scope) -> None:
    model, example, classes = made(name)
    before = copy.deepcopy(model.state_dict())
    order = [key for key, _ in model.named_parameters()]
    masks = pruning.magnitude_masks(model, example, classes=classes, share=0.6, scope=scope)
    pruning.apply_masks(model, masks)
    with torch.no_grad():
        masked = logits_of(model(example))
    assert pruning.remove_masks(model) == list(masks)
    assert [key for key, _ in model.named_parameters()] == order
    after = model.state_dict()
    assert list(after) == list(before)
    kept, gone = [], []
    for key, value in after.items():
        if key not in masks:
            assert torch.equal(value, before[key]), "biases, norms, embeddings and the classifier are left alone"
            continue
        assert torch.equal(value == 0, ~masks[key])
        assert torch.equal(value[masks[key]], before[key][masks[key]])
        kept.append(before[key][masks[key]].abs())
        gone.append(before[key][~masks[key]].abs())
        if scope == "local":
            assert len(gone[-1]) == int(0.6 * value.numel() + 0.5)
            assert gone[-1].max() <= kept[-1].min()
    total = sum(len(part) for part in (*kept, *gone))
    if scope == "global":
        assert sum(len(part) for part in gone) == int(0.6 * total + 0.5)
        assert torch.cat(gone).max() <= torch.cat(kept).min()
    with torch.no_grad():
        assert torch.equal(logits_of(model(example)), masked)
    assert type(model) is type(made(name)[0])


def test_which_weights_can_be_masked() -> None:
    model, example, classes = architectures.native()
    names = set(maskable(model, example, classes=classes))
    assert {"patches.weight", "encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.1.linear2.weight"} <= names
    assert not [name for name in names if "bias" in name or "norm" in name or name.startswith("head")]
    assert set(maskable(model, example, classes=classes, classifier=True)) - names == {"head.weight"}
    bert, example, classes = made("hf_bert")
    assert not [name for name in maskable(bert, example, classes=classes) if "embeddings" in name]
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    shared[1].weight = shared[0].weight
    assert set(maskable(shared, torch.randn(2, 4), classes=3)) == {"2.weight"}
    with pytest.raises(ModelError, match="no weights to mask"):
        maskable(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4), classes=3)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit", "hf_bert", "native"])
def test_of_every_m_weights_along_the_inputs_the_n_largest_stay(name: str, n: int, m: int) -> None:
    model, example, classes = made(name)
    weights = {key: value.detach().double().numpy() for key, value in model.named_parameters()}
    masks = pruning.nm_masks(model, example, classes=classes, n=n, m=m)
    assert masks
    for key, mask in masks.items():
        weight, kept = weights[key], mask.numpy()
        assert weight.shape[1] % m == 0
        for row in range(0, weight.shape[0], 5):
            for start in range(0, weight.shape[1], m):
                block = abs(weight[row, start : start + m]).reshape(m, -1)
                taken = kept[row, start : start + m].reshape(m, -1)
                assert (taken.sum(axis=0) == n).all()
                assert (
                    (block * taken).sum(axis=0) >= 0.999999 * (-(-block).copy()).__abs__().sum(axis=0) * n / m
                ).all()
                for tap in range(block.shape[1]):
                    assert min(block[taken[:, tap], tap]) >= max(block[~taken[:, tap], tap])


def test_weights_whose_inputs_do_not_divide_have_no_mask() -> None:
    model, example, classes = architectures.mobilenet()
    masks = pruning.nm_masks(model, example, classes=classes)
    assert "0.weight" not in masks and "3.body.3.weight" not in masks, "images of three channels, depthwise"
    assert "3.body.0.weight" in masks
    with pytest.raises(ModelError, match="multiple of 5"):
        pruning.nm_masks(model, example, classes=classes, m=5)
    with pytest.raises(ModelError, match="0 < n < m"):
        pruning.nm_masks(model, example, classes=classes, n=4, m=4)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p, lr: torch.optim.SGD(p, lr, 0.9, weight_decay=0.1)])
def test_masks_hold_against_momentum_and_decay_through_copies_and_states(optimizer: type[torch.optim.AdamW]) -> None:
    model, example, classes = architectures.vit()
    masks = pruning.magnitude_masks(model, example, classes=classes, share=0.5)
    fresh, *_ = architectures.vit()
    keys = list(model.state_dict())
    pruning.apply_masks(model, masks)
    assert list(model.state_dict()) == keys
    copied = copy.deepcopy(model)
    pruning.apply_masks(fresh, masks)
    fresh.load_state_dict(model.state_dict())
    for each in (copied, fresh):
        steps = optimizer(each.parameters(), lr=0.01)
        for _ in range(3):
            F.cross_entropy(each(example), torch.tensor([0, 1])).backward()
            steps.step()
            steps.zero_grad()
        trained = each(example).detach()
        pruning.remove_masks(each)
        assert torch.equal(each(example), trained)
        for name, mask in masks.items():
            assert (each.get_parameter(name)[~mask] == 0).all()
            assert not torch.signbit(each.get_parameter(name)[~mask]).any()
        assert not each._forward_pre_hooks and pruning.masks_of(model).keys() == masks.keys()
        assert not torch.equal(each.layers[0].mlp[0].weight, model.layers[0].mlp[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), fresh.parameters(), strict=True))


def test_two_calls_may_share_a_backward_pass() -> None:
    model, example, classes = architectures.resnet()
    pruning.apply_masks(model, pruning.magnitude_masks(model, example, classes=classes, share=0.5))
    plain = copy.deepcopy(model)
    pruning.remove_masks(plain)
    for each in (model, plain):
        (each(example).sum() + each(2 * example).sum()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_sparser_in_rounds_and_a_file_of_plain_weights(tmp_path: object) -> None:
    model, example, classes = architectures.resnet()
    last: dict[str, torch.Tensor] = {}
    for share in (0.3, 0.5, 0.8):
        masks = pruning.magnitude_masks(model, example, classes=classes, share=share)
        pruning.apply_masks(model, masks)
        assert all(not (mask & ~last[name]).any() for name, mask in masks.items() if last), "what is zero stays zero"
        last = masks
    assert len(pruning.remove_masks(model)) == len(last)
    assert pruning.remove_masks(model) == []
    zeros = sum(int((~mask).sum()) for mask in last.values())
    assert count_nonzeros(model) == parameter_count(model) - zeros
    save_weights(f"{tmp_path}/m.safetensors", model)
    again, *_ = architectures.resnet()
    load_weights(again, f"{tmp_path}/m.safetensors")
    assert torch.equal(again(example), model(example))


def test_masks_that_do_not_fit_are_refused() -> None:
    model, example, classes = architectures.resnet()
    for masks, message in (
        ({"nowhere.weight": torch.ones(1, dtype=torch.bool)}, "found 'nowhere.weight'"),
        ({"head.forward": torch.ones(1, dtype=torch.bool)}, "found 'head.forward'"),
        ({"head.weight": torch.ones(7, 3, dtype=torch.bool)}, r"bool \(7, 32\); found torch.bool \(7, 3\)"),
        ({"head.weight": torch.ones(7, 32)}, "should be bool"),
    ):
        with pytest.raises(ModelError, match=message):
            pruning.apply_masks(model, masks)
    nn.utils.parametrizations.weight_norm(model.head)
    with pytest.raises(ModelError, match="should name weights of the model"):
        pruning.apply_masks(model, {"head.weight": torch.ones(7, 32, dtype=torch.bool)})
    for share in (0.0, 1.0):
        with pytest.raises(ModelError, match="between 0 and 1"):
            pruning.magnitude_masks(model, example, classes=classes, share=share)
    with pytest.raises(ModelError, match="local or global"):
        pruning.magnitude_masks(model, example, classes=classes, share=0.5, scope="all")  # type: ignore[arg-type]
