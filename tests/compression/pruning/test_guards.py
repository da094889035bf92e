"""What cannot be pruned, or would come out broken, is refused by name; rounds and scopes do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.compression import pruning
from pipeline.errors import ModelError
from pipeline.models.structure import structure_of
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")


class HeadsUnknown(nn.Module):
    """Queries, keys and values, and heads that are written out in the forward pass."""

    def __init__(self, grouped: bool = False) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 8 if grouped else 16)
        self.value, self.head = nn.Linear(16, 8 if grouped else 16), nn.Linear(16, 3)
        if grouped:
            self.num_heads = 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for part in (self.query, self.key, self.value))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(dim=1))


class Folding(nn.Module):
    """A size written out, so that half of the channels make half of the batch, without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean(dim=(2, 3))
        return self.head(torch.nn.functional.pad(x.reshape(-1, 4), (0, self.head.in_features - 4)))[: len(x)]


class WrittenOut(nn.Module):
    """One size written out, beside layers that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(288, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.conv(x).view(-1, 288)).relu())


TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_heads_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(ModelError, match=r"HeadsUnknown.*looks like attention by its query.*num_heads"):
        pruning.prune(HeadsUnknown(), TOKENS, classes=3, ratio=0.5)
    with pytest.raises(ModelError, match="queries and keys of different heads"):
        pruning.prune(HeadsUnknown(grouped=True), TOKENS, classes=3, ratio=0.5)
    odd = HeadsUnknown()
    odd.num_heads = 3
    with pytest.raises(ModelError, match="16 channels do not make 3 heads"):
        pruning.prune(odd, TOKENS, classes=3, ratio=0.5)
    with pytest.raises(ModelError, match="removed nothing"):  # all that could leave are its heads
        pruning.prune(HeadsUnknown(), TOKENS, classes=3, ratio=0.5, heads="none")


def test_an_output_that_mixes_the_batch_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"flatten\(1\)"):
        pruning.check_pruned(Folding(), IMAGES, before=10**9, classes=3)


def test_what_breaks_the_model_is_named_and_the_rest_can_go() -> None:
    model = WrittenOut().eval()
    with pytest.raises(ModelError, match="Channels of conv break it"):
        pruning.prune(model, IMAGES, classes=3, ratio=0.5)
    assert pruning.breaking(model, IMAGES, classes=3) == ["conv"]
    pruned = pruning.prune(model, IMAGES, classes=3, ratio=0.5, ratios={"conv": 0.0})
    assert (pruned.conv.out_channels, pruned.hidden.out_features) == (8, 8)


def test_torch_s_own_attention_stays_whole_and_its_perceptron_shrinks() -> None:
    model, example, classes = architectures.native()
    pruned = pruning.prune(model, example, classes=classes, ratio=0.5)
    for before, after in zip(model.encoder.layers, pruned.encoder.layers, strict=True):
        assert torch.equal(before.self_attn.in_proj_weight, after.self_attn.in_proj_weight)
        assert after.linear1.out_features == after.linear2.in_features == 32
    with torch.no_grad():  # the fast path reads the same weights
        fast = pruned(example)
    assert torch.allclose(fast, pruned(example), atol=1e-5)


def test_masks_are_removed_before_channels_leave() -> None:
    model, example, classes = architectures.resnet()
    pruning.apply_masks(model, pruning.magnitude_masks(model, example, classes=classes, share=0.5))
    normed, *_ = architectures.resnet()
    nn.utils.parametrizations.weight_norm(normed.get_submodule("stem.0"))
    for hidden in (model, normed):
        with pytest.raises(ModelError, match="remove them"):
            pruning.prune(hidden, example, classes=classes, ratio=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "below 1"), ({"ratio": -0.1}, "at least 0"), ({"ratio": 0.5, "scope": "all"}, "scope"),
        ({"ratio": 0.5, "heads": "some"}, "heads should be one of"), ({"ratio": 0.5, "rounds": 0}, "rounds"),
        ({"ratio": 0.0, "ratios": {"head": 0.5}}, "found 'head'"), ({"ratio": 0.0}, "removed nothing"),
        ({"ratio": 0.0, "ratios": {"stem.0": 1.5}}, "the ratio of stem.0"),
        ({"ratio": 0.0, "ratios": {"stem.0": 0.5, "stages.0.body.2.0": 0.25}}, "lose the same channels"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_named(options: dict[str, object], message: str) -> None:
    model, example, classes = architectures.resnet()
    with pytest.raises(ModelError, match=message):
        pruning.prune(model, example, classes=classes, **options)


def test_rounds_end_at_the_ratio_and_rank_what_the_callback_gives() -> None:
    model, example, classes = architectures.resnet()
    seen: list[int] = []

    def between(pruned: nn.Module) -> nn.Module:
        seen.append(pruned.get_submodule("stages.5.body.0.0").out_channels)
        with torch.no_grad():  # weights that were important and that were not change places
            for parameter in pruned.parameters():
                parameter.copy_(parameter.sign() * (1 - parameter.abs()).clamp_min(0) * 0.1)
        return pruned

    once = pruning.prune(model, example, classes=classes, ratio=0.5)
    slowly = pruning.prune(model, example, classes=classes, ratio=0.5, rounds=3, between=between)
    assert seen == [27, 21]  # of 32, a sixth and a third gone
    assert structure_of(once, slowly) == {}
    assert not torch.equal(once.head.weight, slowly.head.weight)


def test_the_global_scope_takes_the_least_of_all_and_leaves_something_everywhere() -> None:
    model, example, classes = architectures.bottleneck()
    with torch.no_grad():
        for parameter in model.get_submodule("stages.3").parameters():
            parameter.mul_(1e-3)  # raw importances of this block are the least
    gone = {
        importance: structure_of(
            model, pruning.prune(model, example, classes=classes, ratio=0.3, scope="global", importance=importance)
        )
        for importance in ("l1", "bn-scale")
    }
    inner = "stages.3.body.2.0"
    assert gone["bn-scale"][inner]["out_channels"] == 1, "scales are compared between layers as they are"
    assert gone["l1"].get(inner, {"out_channels": 16})["out_channels"] > 5, "others over the mean of their group"


def test_global_units_are_as_many_as_asked() -> None:
    model, example, classes = architectures.grouped()
    groups = pruning.groups_of(model, example, classes=classes)
    total = sum(len(group.units) for group in groups)
    pruned = pruning.prune(model, example, classes=classes, ratio=0.4, scope="global", importance="random", seed=5)
    left = sum(len(group.units) for group in pruning.groups_of(pruned, example, classes=classes))
    assert total - left == int(0.4 * total + 0.5)
    again = pruning.prune(model, example, classes=classes, ratio=0.4, scope="global", importance="random", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), again.parameters(), strict=True))
    assert parameter_count(pruned) < parameter_count(model)
