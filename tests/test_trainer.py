"""A transformers Trainer that learns from a cache: the loss of every step is that of a reference, padding or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline import load_dataset
from pipeline.datasets import Tokens
from pipeline.encodings.sampled import Sampled
from pipeline.errors import CacheMismatchError, ConfigError, DataError, EncodingError
from pipeline.losses.divergences import reverse_kl_loss
from pipeline.sampler import blocks_of
from pipeline.softlabels import Dense
from pipeline.store import Cache
from pipeline.trainer import CachedRows, Collator, DistillationMixin, PartSampler, RowNumbers, token_loss
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.stage import initial_student
from tests.served import contract, dumped, logprobs_of, teacher

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

TOP = {"encoding": "topk", "k": 20, "temperature": (1.0, 2.0)}
DRAWS = {"encoding": "sampled", "draws": 30}


class Taught(NamedTuple):
    """A packing contract, the teacher's log-probabilities (T - 1, V) of a row, and its caches by their options."""

    data: Tokens
    said: Callable[[int], np.ndarray[Any, Any]]
    cache: Callable[..., Cache]

    def labels(self, **options: Any) -> CachedRows:
        return CachedRows(self.cache(**options), self.data)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    root = tmp_path_factory.mktemp("trainer")
    data = contract(root / "tokens")
    weights = root / "teacher.safetensors"
    model = teacher(weights, data)
    made: dict[str, Cache] = {}

    def cache(**options: Any) -> Cache:
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = dumped(
                root / str(len(made)),
                data,
                weights,
                splits=("train", "validation"),
                **(options or {"encoding": "dense"}),
            )
        return made[key]

    return Taught(data, lru_cache(maxsize=None)(lambda row: logprobs_of(model, data, row)[1]), cache)


def student(data: Tokens, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(data.classes),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=data.input_shape[0],
    )
    return transformers.LlamaForCausalLM(config)


class Distilling(DistillationMixin, transformers.Trainer):
    pass


def trainer(
    out: Path, data: Tokens, labels: CachedRows, model: Any = None, eval_dataset: Any = None, **options: Any
) -> Any:
    mine = {name: options.pop(name) for name in ("alpha", "temperature", "loss", "sampler") if name in options}
    settings = {
        "per_device_train_batch_size": 3,
        "max_steps": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **options,
    }
    return Distilling(
        model or student(data),
        transformers.TrainingArguments(str(out), **settings),
        train_dataset=labels.dataset(),
        eval_dataset=eval_dataset,
        data_collator=Collator(data, labels),
        **mine,
    )


def logged(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def reference(model: Any, taught: Taught, rows: list[int], alpha: float, temperature: float) -> torch.Tensor:
    """The mean over the scored positions of ``rows``, sequence by sequence, position by position, without padding,
    against the teacher itself."""
    losses = []
    for row in rows:
        held = taught.data.read(row)
        count = (len(held) + 1) // 5
        tokens, mask = np.frombuffer(held, "<u4", count).astype(np.int64), held[4 * count :]
        logits = model(torch.from_numpy(tokens[None, :-1])).logits[0].double()
        for place in np.flatnonzero(np.frombuffer(mask, np.uint8)).tolist():
            p = torch.softmax(torch.from_numpy(taught.said(row)[place]) / temperature, dim=0)
            kl = (p * (p.log() - torch.log_softmax(logits[place] / temperature, dim=0))).sum()
            hard = -torch.log_softmax(logits[place], dim=0)[tokens[place + 1]]
            losses.append(alpha * temperature**2 * kl + (1 - alpha) * hard)
    return torch.stack(losses).mean()


class InOrder(torch.utils.data.Sampler[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter(range(self.count))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.7, 2.0), (0.0, 1.0)])
def test_each_step_is_that_of_the_reference(
    taught: Taught, tmp_path: Path, accumulation: int, alpha: float, temperature: float
) -> None:
    labels = taught.labels()
    rows = labels.matching.rows.tolist()
    mine = trainer(
        tmp_path,
        taught.data,
        labels,
        alpha=alpha,
        temperature=temperature,
        sampler=InOrder(len(rows)),
        gradient_accumulation_steps=accumulation,
        max_steps=2,
    )
    mine.train()
    model = student(taught.data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    size = 3 * accumulation
    for step in range(2):
        loss = reference(model, taught, rows[step * size : (step + 1) * size], alpha, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logged(mine) == pytest.approx(losses, rel=1e-4)
    for name, parameter in mine.model.named_parameters():
        expected = model.get_parameter(name)
        torch.testing.assert_close(parameter.detach(), expected.detach(), rtol=1e-4, atol=1e-6)


class Wrapped(torch.nn.Module):
    """A model of ours as the Trainer calls one of theirs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.model(input_ids)}


@pytest.mark.parametrize("encoding", [{"encoding": "dense"}, TOP, DRAWS], ids=lambda e: str(e["encoding"]))
def test_a_step_is_that_of_our_own_loop(taught: Taught, tmp_path: Path, encoding: dict[str, Any]) -> None:
    cache, data = taught.cache(**encoding), taught.data
    rows = data.rows("train")
    config = TrainConfig(
        data=data.name,
        cache=str(cache.address),
        student="gpt-16",
        student_args=("layers=1",),
        epochs=1,
        batch_size=len(rows),
        alpha=0.7,
        temperature=1.0,
        device="cpu",
        out=tmp_path / "run",
    )
    ours: list[float] = []
    fit(
        initial_student(config, data, 3),
        prepare(config).task,
        config,
        seed=3,
        on_step=lambda _, loss: ours.append(float(loss)),
    )
    model = Wrapped(initial_student(config, data, 3))
    theirs = trainer(
        tmp_path,
        data,
        taught.labels(**encoding),
        model,
        alpha=0.7,
        max_steps=1,
        per_device_train_batch_size=len(rows),
    )
    theirs.train()
    assert logged(theirs) == pytest.approx(ours, rel=1e-5) and len(ours) == 1


@pytest.mark.parametrize("encoding", [TOP, DRAWS], ids=lambda e: str(e["encoding"]))
def test_sparse_labels_train_in_workers_and_without(taught: Taught, tmp_path: Path, encoding: dict[str, Any]) -> None:
    labels = taught.labels(**encoding)
    runs = []
    for workers in (0, 1):
        mine = trainer(
            tmp_path,
            taught.data,
            labels,
            sampler=labels.sampler(seed=5, window=2),
            dataloader_num_workers=workers,
            per_device_train_batch_size=8,
            max_steps=24,
            learning_rate=0.05,
            optim="adamw_torch",
        )
        mine.train()
        runs.append(logged(mine))
    assert runs[0] == runs[1]
    assert sum(runs[0][-5:]) < 0.7 * sum(runs[0][:5])


def test_sampled_labels_are_right_on_average(taught: Taught) -> None:
    """The loss from many draws comes to the teacher's own cross-entropy."""
    labels, data = taught.labels(encoding="sampled", draws=500), taught.data
    assert isinstance(labels.cache.encoding, Sampled)
    rows = labels.matching.rows
    batch = Collator(data, labels)(rows.tolist())
    model = student(data)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
        found = token_loss(logits, batch["soft_labels"], batch["shift_labels"], alpha=1.0).item()
        kl = reference(model, taught, rows.tolist(), 1.0, 1.0).item()
    said = [
        taught.said(int(row))[data.targets(rows[n : n + 1])[0][: len(taught.said(int(row)))] >= 0]
        for n, row in enumerate(rows)
    ]
    entropy = -np.mean(np.concatenate([(np.exp(s) * s).sum(axis=1) for s in said]))
    assert found == pytest.approx(kl + entropy, rel=0.02)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(taught: Taught, tmp_path: Path) -> None:
    data, labels = taught.data, taught.labels(**TOP)
    options: dict[str, Any] = {"alpha": 1.0, "max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    whole = trainer(tmp_path / "whole", data, labels, sampler=labels.sampler(window=1), **options)
    whole.train()
    other = student(data, seed=1)
    again = trainer(tmp_path / "again", data, labels, other, sampler=labels.sampler(window=1), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for ours, theirs in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_gives_the_mean_of_its_batch_and_labels_for_metrics(taught: Taught, tmp_path: Path) -> None:
    data, labels = taught.data, taught.labels()
    rows = labels.matching.rows[:4]
    mine = trainer(tmp_path, data, labels, alpha=0.4, eval_dataset=RowNumbers(rows), per_device_eval_batch_size=4)
    found = mine.evaluate()["eval_loss"]
    assert found == pytest.approx(reference(mine.model, taught, rows.tolist(), 0.4, 1.0).item(), rel=1e-4)
    batch = Collator(data, labels)(rows.tolist())
    length = batch["labels"].shape[1]
    for row, counted in zip(rows, batch["labels"].tolist(), strict=True):
        expected = data.targets(np.array([row]))[0]
        assert counted == [-100, *[t if t >= 0 else -100 for t in expected]][:length]


def test_the_labels_of_another_split(taught: Taught) -> None:
    labels = CachedRows(taught.cache(), taught.data, split="validation")
    rows = taught.data.rows("validation")
    assert labels.matching.rows.tolist() == rows.tolist()
    soft = labels(rows[1:])
    assert isinstance(soft, Dense) and len(soft) == taught.data.lengths[rows[1:]].sum()
    wanted = taught.said(int(rows[1]))[taught.data.targets(rows[1:2])[0][: len(taught.said(int(rows[1])))] >= 0]
    differences = soft.logits[: len(wanted)] - wanted
    np.testing.assert_allclose(differences - differences[:, :1], 0, atol=1e-4)


def test_a_batch_is_cut_after_what_is_scored(taught: Taught) -> None:
    data, labels = taught.data, taught.labels()
    rows = labels.matching.rows
    short = rows[np.argsort([(data.targets(rows[n : n + 1])[0] >= 0).nonzero()[0][-1] for n in range(len(rows))])[:2]]
    last = max(int((data.targets(short[n : n + 1])[0] >= 0).nonzero()[0][-1]) for n in range(2))
    batch = Collator(data, labels)(short.tolist())
    length = min(last + 2, data.input_shape[0])
    assert last + 2 < data.input_shape[0], "nothing to cut"
    assert batch["input_ids"].shape == batch["labels"].shape == batch["shift_labels"].shape == (2, length)
    counts = (batch["shift_labels"] != -100).sum(), (batch["labels"] != -100).sum(), len(batch["soft_labels"])
    assert {int(count) for count in counts} == {int(data.lengths[short].sum())}


def test_positions_that_do_not_match_are_refused(taught: Taught) -> None:
    data, labels = taught.data, taught.labels()
    few, *_, many = labels.matching.rows[np.argsort(data.lengths[labels.matching.rows])]
    with pytest.raises(DataError, match=f"scored positions; the cache holds labels for {data.lengths[few]}"):
        Collator(data, lambda rows: labels(np.array([few])))([int(many)])
    with pytest.raises(CacheMismatchError, match="no train labels"):
        Collator(data, labels)([int(data.rows("validation")[0])])


def test_a_cache_of_another_contract_is_refused(taught: Taught, tmp_path: Path) -> None:
    other = contract(tmp_path / "other", length=12, tokenizer=str(taught.data.contract.folder))
    with pytest.raises(CacheMismatchError, match="another packing"):
        CachedRows(taught.cache(), other)
    with pytest.raises(CacheMismatchError):
        CachedRows(taught.cache(), load_dataset("digits"))


def test_what_would_be_ignored_is_refused(taught: Taught, tmp_path: Path) -> None:
    data, labels = taught.data, taught.labels()
    with pytest.raises(ConfigError, match="alpha should be"):
        trainer(tmp_path, data, labels, alpha=1.5)
    with pytest.raises(ConfigError, match="label_smoothing_factor"):
        trainer(tmp_path, data, labels, label_smoothing_factor=0.1)
    with pytest.raises(ConfigError, match="compute_loss_func"):
        Distilling(student(data), compute_loss_func=lambda *_: None)
    mine = trainer(tmp_path, data, labels)
    mine.data_collator = lambda rows: {"input_ids": torch.ones(1, 2, dtype=torch.int64)}
    with pytest.raises(ConfigError, match="no soft_labels"):
        mine.train()


def test_another_vocabulary_is_refused() -> None:
    soft = Dense(torch.zeros(1, 7))
    with pytest.raises(EncodingError, match="another number of classes"):
        token_loss(torch.zeros(1, 1, 8), soft, torch.zeros(1, 1, dtype=torch.int64))


def test_another_loss_and_the_items_of_several_batches() -> None:
    soft = Dense(torch.randn(3, 7, dtype=torch.float64))
    logits = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.full((2, 4), -100)
    targets[0, 1] = targets[0, 3] = targets[1, 0] = 2
    found = token_loss(logits, soft, targets, alpha=1.0, items=torch.tensor(10), loss=reverse_kl_loss)
    rows = torch.stack([logits[0, 1], logits[0, 3], logits[1, 0]])
    q = torch.softmax(rows, dim=1)
    expected = (q * (q.log() - torch.log_softmax(soft.stored, dim=1))).sum() / 10
    assert found.item() == pytest.approx(expected.item())
    assert found.dtype == torch.float64
    torch.autograd.gradcheck(lambda z: token_loss(z, soft, targets, alpha=0.3), (logits,))


def test_the_sampler_visits_every_row_once_in_an_order_of_the_epoch() -> None:
    blocks = blocks_of(np.arange(10), np.arange(10) // 3)
    sampler = PartSampler(blocks, seed=1, window=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(sampler) == 10 and sorted(first) == sorted(second) == list(range(10)) and first != second
    assert [n // 3 for n in first] == sorted((n // 3 for n in first), key=[n // 3 for n in first].index)
