"""What a causal model must be, its parts, and text sampled from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models import build_model, check_causal, check_model, generate, logits_of, split_head
from pipeline.models.causal import Causal, Narrowed

V = 11


def gpt(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    given = {"layers": 1, "heads": 2} | arguments
    return build_model("gpt-8", given, classes=V, input_shape=(10,), discrete=True)


def some_ids(*shape: int, seed: int = 0, below: int = V) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """A gpt with something done to its hidden states or its logits."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = gpt(), before or (lambda h: h), after or (lambda x: x)

    def forward(self, ids: Tensor) -> Any:
        return self.after(self.inner.head(self.before(self.inner.body(ids))))


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("wrap", [None, Answer, lambda x: (x, None), lambda x: x.log_softmax(-1), torch.relu])
@pytest.mark.parametrize("shape", [(1, 10), (3, 7), (2, 1), (2, 100)])
def test_causal_models_pass(wrap: Any, shape: tuple[int, int]) -> None:
    model = Around(after=wrap)
    model.inner.body.dropout.train(False)
    check_causal(model, vocabulary=V, example_ids_BT=some_ids(*shape))
    check_model(model, classes=V, example_input=some_ids(*shape), class_names=[str(n) for n in range(V)])
    assert model.training and not model.inner.body.dropout.training
    assert all(parameter.grad is None for parameter in model.parameters())


def reversed_mean(h: Tensor) -> Tensor:
    """Each position and what follows it."""
    return h + h.flip(1).cumsum(1).flip(1)


BAD = [
    (Around(after=lambda x: x[..., :7]), r"shape \(2, 8, 11\) for 8 tokens.*found \(2, 8, 7\).* its own tokenizer"),
    (Around(after=lambda x: x[:, -1]), r"found \(2, 11\)"),
    (Around(after=lambda x: x / 0), "NaN or infinite logits at 16 of 16 positions"),
    (Around(after=lambda x: x.softmax(-1)), "gives probabilities"),
    (Around(after=nn.Sigmoid()), "ends in a sigmoid"),
    (Around(after=nn.functional.dropout), "different logits for the same inputs"),
    (Around(before=reversed_mean), "is not causal: other tokens from position 4 on changed its logits"),
    (Around(before=lambda h: h + 0.01 * h.mean(1, keepdim=True)), "is not causal"),
    (Around(before=lambda h: h.roll(-1, 1)), "is not causal"),
    (Around(before=lambda h: h + h.shape[1]), "other logits for 4 tokens when 4 of padding stood on their right"),
    (nn.Linear(8, V), r"cannot take inputs of shape \(2, 8\)"),
    (nn.Embedding(5, V), r"cannot take inputs of shape \(2, 8\)"),
    (Around(after=lambda x: "text"), "found str"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
@pytest.mark.parametrize("gradients", [True, False])
def test_models_that_do_not_fit_are_refused(model: nn.Module, message: str, gradients: bool) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(model.requires_grad_(gradients), classes=V, example_input=some_ids(2, 8), whose="teacher t")


def test_another_vocabulary_is_refused_by_its_first_token() -> None:
    model = gpt()
    names = [f"t{n}" for n in range(V)]
    for tokens in (None, names, [*names, "<added>"]):
        model.tokens = tokens
        check_model(model, classes=V, example_input=some_ids(2, 8), class_names=names)
    for tokens, message in (
        ([*names[:4], "x", *names[5:]], r"token 4 is 'x' for it and 't4' in the dataset"),
        (names[:-2], r"\(9 tokens against 11\): token 9 is nothing for it and 't9'"),
        ([*names[:4], "x", *names[4:]], r"\(12 tokens against 11\): token 4"),
    ):
        model.tokens = tokens
        with pytest.raises(ModelError, match=message):
            check_model(model, classes=V, example_input=some_ids(2, 8), class_names=names, whose="teacher t")


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("narrow", [V, 7])
def test_training_through_the_parts_trains_the_model(tied: bool, narrow: int) -> None:
    inner, ids = gpt(tied=tied), some_ids(2, 6, below=narrow)
    model = inner if narrow == V else Narrowed(inner, narrow)
    parts = split_head(model)
    assert parts is not None
    body, head = parts
    assert isinstance(head, nn.Linear) and head.weight.shape == (narrow, 8) and head.bias is None
    assert body(ids).shape == (2, 6, 8) and torch.equal(head(body(ids)), logits_of(model(ids)))
    target = ids.flatten()
    nn.functional.cross_entropy(model(ids).flatten(0, 1), target).backward()
    expected = gradients(model)
    assert expected
    hidden_PD = body(ids).flatten(0, 1)
    nn.functional.cross_entropy(hidden_PD @ head.weight.T, target).backward()
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_head_with_a_bias_narrows_both() -> None:
    model = Narrowed(Causal(nn.Embedding(9, 4), nn.Linear(4, 9)), 6)
    parts = split_head(model)
    assert parts is not None and parts[1].bias is not None and parts[1].bias.shape == (6,)
    ids = some_ids(2, 3, below=6)
    torch.testing.assert_close(parts[1](parts[0](ids)), model(ids))


class Capped(Causal):
    def forward(self, ids: Tensor) -> Tensor:
        return 5 * torch.tanh(super().forward(ids) / 5)


def test_models_that_are_more_than_a_head_on_a_body_are_not_split() -> None:
    hydra = build_model("hydra:mlp-4", {"heads": 2}, classes=3, input_shape=(4,))
    capped = Capped(nn.Embedding(9, 4), nn.Linear(4, 9))
    for model in (hydra, capped, Narrowed(capped, 5), Around(), nn.Linear(3, 3), build_model(
        "cnn-2", classes=3, input_shape=(1, 8, 8)
    )):  # fmt: skip
        assert split_head(model) is None


class Table(nn.Module):
    """Logits of the next token from the last one alone."""

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(log_p)
        self.lengths: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.lengths.append(ids.shape[1])
        return self.table[ids]


def test_greedy_text_follows_the_largest() -> None:
    following = torch.tensor([3, 0, 4, 2, 1])
    model = Table(nn.functional.one_hot(following, 5).float())
    assert generate(model, torch.tensor([0]), tokens=6, temperature=0).tolist() == [0, 3, 2, 4, 1, 0, 3]
    assert generate(model, torch.tensor([0]), tokens=0).tolist() == [0]


def test_text_is_a_function_of_model_prompt_and_seed() -> None:
    model, prompts = gpt(dropout=0.5), some_ids(3, 4)
    found = generate(model, prompts, tokens=9, seed=5)
    assert model.training and found.dtype == torch.int64 and found.shape == (3, 13)
    assert torch.equal(found[:, :4], prompts) and int(found.min()) >= 0 and int(found.max()) < V
    torch.manual_seed(123)
    assert torch.equal(generate(model, prompts, tokens=9, seed=5), found)
    assert not torch.equal(generate(model, prompts, tokens=9, seed=6), found)
    # Neither the other prompts nor how many tokens are asked for change a prompt's own text.
    assert torch.equal(generate(model, prompts[:1], tokens=4, seed=5), found[:1, :8])
    assert torch.equal(generate(model, prompts[0], tokens=9, seed=5), found[0])
    same = generate(model, prompts[:1].expand(40, -1), tokens=3, seed=5)
    assert len({tuple(row) for row in same.tolist()}) > 20


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1), (1.0, 50)])
def test_shares_are_those_of_the_softmax(temperature: float, top_k: int | None) -> None:
    log_p = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2]).double().log()
    n = 20_000
    model = Table(log_p.expand(5, 5).clone())
    drawn = generate(model, torch.zeros(n, 1, dtype=torch.int64), tokens=1, temperature=temperature, top_k=top_k)[:, 1]
    kept = log_p >= log_p.sort().values[-min(top_k or 5, 5)]
    expected = torch.where(kept, (log_p / temperature).exp(), 0.0)
    expected /= expected.sum()
    found = torch.bincount(drawn, minlength=5) / n
    assert float((found - expected).abs().max()) < 4 * 0.5 / n**0.5
    assert not found[expected == 0].any()


def test_the_context_is_cropped_to_the_longest() -> None:
    model = Table(torch.zeros(5, 5))
    generate(model, torch.tensor([0, 1, 2]), tokens=4, longest=4)
    assert model.lengths == [3, 4, 4, 4]


def test_numbers_out_of_range() -> None:
    with pytest.raises(ConfigError) as caught:
        generate(gpt(), some_ids(1, 3), tokens=-1, temperature=-1.0, top_k=0, longest=0)
    assert len(caught.value.problems) == 4
    for prompts in (torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(1, 1, 1, dtype=torch.int64)):
        with pytest.raises(ConfigError, match="prompts should be token numbers"):
            generate(gpt(), prompts, tokens=1)
