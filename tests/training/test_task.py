"""Which examples are trained on, with which labels and views, and what is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import load_dataset
from pipeline.errors import CacheMismatchError, ConfigError, DataError
from pipeline.losses import LOSSES
from pipeline.sampler import Order
from pipeline.sources import CachedLabels, LiveTeacher
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.inputs import LoadedInputs, ResidentInputs, make_inputs
from pipeline.training.recipe import outcome_options
from pipeline.training.stage import initial_student
from pipeline.training.task import keep_labels, repeated, view_numbers
from pipeline.views import make_views

Make = Callable[..., TrainConfig]


def visited(config: TrainConfig) -> np.ndarray:
    return np.concatenate(prepare(config).task.blocks)


def test_with_soft_labels_every_training_example_counts(config: Make) -> None:
    prepared = prepare(config(labelled_fraction=0.2))
    task = prepared.task
    assert sorted(np.concatenate(task.blocks).tolist()) == list(range(50))
    assert [len(block) for block in task.blocks] == [16, 16, 16, 2]
    assert isinstance(task.source, CachedLabels)
    assert prepared.lineage["labelled"] == 9 and prepared.lineage["examples"] == 50
    assert (task.labels[50:] == -1).all(), "labels outside the training split are not for training"


def test_without_soft_labels_only_labelled_examples_count_as_often_as_makes_an_epoch(config: Make) -> None:
    rows, counts = np.unique(visited(config(cached=False, labelled_fraction=0.2)), return_counts=True)
    assert len(rows) == 9 and (counts == 6).all()
    rows, counts = np.unique(visited(config(cached=False, labelled_fraction=0.2, repeat=2)), return_counts=True)
    assert (counts == 2).all()
    assert len(visited(config(alpha=0.0, labelled_fraction=0.2))) == 54, "a cache of weight 0 changes nothing"


def test_an_omitted_class_leaves_training_and_validation(config: Make) -> None:
    prepared = prepare(config(omit_class="bee"))
    labels = prepared.dataset.labels
    assert 1 not in labels[np.concatenate(prepared.task.blocks)] and 1 not in labels[prepared.task.validation]
    assert len(prepared.task.validation) == 8
    with pytest.raises(ConfigError, match=r"a class of .*ant, bee, cat.*'wasp'"):
        prepare(config(omit_class="wasp"))


def test_the_labelled_share_is_stratified_nested_and_independent_of_order(shared: Path) -> None:
    dataset = load_dataset(f"arrays:{shared / 'data.npz'}")
    rows = dataset.rows("train")
    some, more = keep_labels(dataset, rows, 0.2), keep_labels(dataset, rows, 0.5)
    assert [int((some == c).sum()) for c in range(3)] == [3, 3, 3]
    assert [int((more == c).sum()) for c in range(3)] == [8, 8, 8]
    assert (more[some >= 0] >= 0).all()
    assert (some[some >= 0] == dataset.labels[some >= 0]).all()
    assert (keep_labels(dataset, rows[::-1], 0.2) == some).all()
    assert [int((keep_labels(dataset, rows, 0.001) == c).sum()) for c in range(3)] == [1, 1, 1]
    assert (keep_labels(dataset, rows, 1.0)[rows] == dataset.labels[rows]).all()


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(DataError, match="no training example is left"):
        repeated(np.empty(0, np.int64), 0, 10)


def test_views_are_chosen_by_word_or_number() -> None:
    assert view_numbers("plain", range(3)) == (0,)
    assert view_numbers("all", range(3)) == (0, 1, 2)
    assert view_numbers("random", range(3)) == (1, 2)
    assert view_numbers("2", range(3)) == (0, 1)
    for text in ("4", "random"):
        with pytest.raises(ConfigError, match="--train-views"):
            view_numbers(text, range(1) if text == "random" else range(3))


def test_views_come_from_the_cache_or_from_options(config: Make) -> None:
    assert prepare(config(train_views="all")).task.train_views == (0, 1, 2)
    own = config(cached=False, views=3, transform="affine:degrees=10", train_views="random", views_seed=5)
    assert prepare(own).task.train_views == (1, 2, 3)
    assert prepare(own).lineage["views"]["seed"] == 5
    with pytest.raises(CacheMismatchError, match="--transform makes"):
        prepare(config(transform="affine:degrees=10"))


def test_views_that_come_out_otherwise_than_at_dump_time_are_noticed(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = make_views("affine:degrees=15", 3, seed=1)  # as if the transform's library had changed
    monkeypatch.setattr("pipeline.training.caches.replay_views", lambda cache, transform: changed)
    with pytest.raises(CacheMismatchError, match=r"views replayed.*dump again"):
        prepare(config(train_views="all"))
    # Labels that do not depend on the view, and hard ones, do not mind.
    prepare(config(train_views="all", label_view="plain"))
    prepare(config(train_views="all", alpha=0.0))


def test_a_live_teacher_is_built_and_named(config: Make, shared: Path) -> None:
    prepared = prepare(config(cached=False, teacher="mlp-8", weights=shared / "teacher.safetensors"))
    assert isinstance(prepared.task.source, LiveTeacher)
    assert prepared.lineage["teacher"]["reference"] == "mlp-8"
    cached = prepare(config()).lineage["teacher"]
    assert cached["state"] == prepared.lineage["teacher"]["state"]


def test_blocks_of_a_run_without_a_cache_can_be_those_of_one(config: Make) -> None:
    with_cache, without = (prepare(c).task.blocks for c in (config(), config(cached=False, block=16)))
    assert [b.tolist() for b in with_cache] == [b.tolist() for b in without]


def test_what_a_topk_cache_cannot_serve_is_refused(config: Make, make_cache: Callable[..., str]) -> None:
    made = make_cache("topk", encoding="topk", k=2, temperature=(1.0, 4.0))
    prepare(config(cache=made))
    with pytest.raises(ConfigError, match=r"--temperature 3 was not kept.*T = 1, 4"):
        prepare(config(cache=made, temperature=3.0))
    with pytest.raises(ConfigError, match="--encoding dense"):
        prepare(config(cache=made, loss="logit-regression"))
    prepare(config(cache=made, temperature=3.0, alpha=0.0))


def test_bare_labels_are_of_topk_caches(config: Make, make_cache: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"--bare-topk is of top-k labels; .*cache keeps .* \(dense\).*transcode"):
        prepare(config(bare_topk=True))
    made = make_cache("topk", encoding="topk", k=2, temperature=(1.0, 4.0))
    fitted = {}
    for bare in (False, True):
        options = config(cache=made, alpha=1.0, epochs=6, bare_topk=bare)
        prepared = prepare(options)
        fitted[bare] = fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0).history
    assert fitted[True][-1]["soft"] < fitted[True][0]["soft"] != fitted[False][0]["soft"]
    other = make_cache("other", encoding="topk", k=1, temperature=(4.0,))
    several = config(cache=None, labels=(made, other), mix="losses", bare_topk=True)
    assert prepare(several).task.objective.at(0) == several.objective and several.objective.bare
    with pytest.raises(ConfigError, match=r"cache keeps .* \(dense\)"):
        prepare(config(labels=(made, config().cache), cache=None, mix="losses", bare_topk=True))


def test_a_residual_is_spread_evenly_in_topk_caches_alone(config: Make, make_cache: Callable[..., str]) -> None:
    even = ("residual=even",)
    with pytest.raises(ConfigError, match=r"--loss-args residual=even is of top-k labels; .* \(dense\).*transcode"):
        prepare(config(loss_args=even))
    draws = make_cache("draws", encoding="sampled", draws=5, temperature=(4.0,))
    with pytest.raises(ConfigError, match=r"residual=even needs more of each distribution than draws from it"):
        prepare(config(cache=draws, loss_args=even))
    prepare(config(loss_args=("residual=one",)))
    made = make_cache("topk", encoding="topk", k=1, temperature=(1.0, 4.0))
    fitted = {}
    for loss_args in ((), ("residual=one",), even):
        options = config(cache=made, alpha=1.0, epochs=6, loss_args=loss_args)
        prepared = prepare(options)
        assert prepared.task.objective == options.objective and options.objective.even == (loss_args == even)
        fitted[loss_args] = fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0).history
    assert fitted[()] == fitted["residual=one",]
    assert fitted[even][-1]["soft"] < fitted[even][0]["soft"] != fitted[()][0]["soft"]


def test_runs_that_are_not_bare_keep_their_identity(config: Make) -> None:
    plain, bare = (outcome_options(config(bare_topk=bare)) for bare in (False, True))
    assert bare == {**plain, "bare_topk": True} and "bare_topk" not in plain


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_from_dense_labels_and_from_topk_ones_or_refuses_by_name(
    config: Make, make_cache: Callable[..., str], name: str
) -> None:
    dense = config(loss=name, alpha=1.0, epochs=6)
    fitted = fit(initial_student(dense, prepare(dense).dataset, 0), prepare(dense).task, dense, seed=0)
    losses = [epoch["soft"] for epoch in fitted.history]
    assert losses[-1] < losses[0]
    kept = config(loss=name, cache=make_cache("topk", encoding="topk", k=2, temperature=(4.0,)))
    if LOSSES[name].topk:
        assert prepare(kept).task.source is not None
    else:
        with pytest.raises(ConfigError, match=f"--loss {name} needs the logits of all classes"):
            prepare(kept)
    with pytest.raises(ConfigError, match="--standardise needs the logits of all classes"):
        prepare(config(standardise=True, cache=make_cache("topk2", encoding="topk", k=2, temperature=(4.0,))))


def test_a_loss_that_needs_hard_labels_names_the_examples_without(config: Make) -> None:
    with pytest.raises(ConfigError, match=r"--loss dkd needs the hard label .* of 50 have none \(e"):
        prepare(config(loss="dkd", labelled_fraction=0.5))


def test_choices_need_a_validation_split(config: Make, tmp_path: Path) -> None:
    splits = np.array(["train", "train", "validation", "test"])
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), y=np.array([0, 1, -1, -1]), split=splits)
    data = f"arrays:{tmp_path / 'd.npz'}"
    assert not len(prepare(config(cached=False, data=data)).task.validation)
    for options in ({"patience": 3}, {"keep": "best"}):
        with pytest.raises(ConfigError, match="no labelled validation"):
            prepare(config(cached=False, data=data, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs_are_the_same_kept_or_loaded(shared: Path, workers: int) -> None:
    dataset = load_dataset(f"arrays:{shared / 'data.npz'}")
    views = make_views("affine:degrees=15", 3)
    rows = dataset.rows("train")
    order = Order((rows[:20], rows[20:]), 7, seed=3, window=1)
    cpu = torch.device("cpu")
    kept = ResidentInputs(dataset, views, rows, cpu, cpu, 0)
    loaded = LoadedInputs(dataset, views, cpu, workers)
    for epoch, start, view in ((0, 0, 1), (1, 3, 2), (1, 0, 2)):
        expected = list(kept.stream(order, epoch, start, view))
        found = list(loaded.stream(order, epoch, start, view))
        assert len(found) == order.batches - start
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        first = int(next(order.epoch(epoch, start))[0])
        assert torch.equal(found[0][0], views.apply(dataset.load(first), dataset.ids[first], view))


def test_opening_an_epoch_of_inputs_draws_nothing(shared: Path) -> None:
    dataset = load_dataset(f"arrays:{shared / 'data.npz'}")
    inputs = LoadedInputs(dataset, make_views("affine:degrees=15", 3), torch.device("cpu"), 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert list(inputs.stream(Order((dataset.rows("train"),), 8), 0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_kept_when_they_fit(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(f"arrays:{shared / 'data.npz'}")
    cpu = torch.device("cpu")

    def made(resident: str) -> object:
        rows = dataset.rows("train")
        return make_inputs(dataset, make_views(None, 1), rows, 3, device=cpu, resident=resident, workers=0)

    size = 50 * 36 * 4 * 3
    monkeypatch.setattr("pipeline.training.inputs.AUTO_BYTES", size + 1)
    assert isinstance(made("auto"), ResidentInputs)
    monkeypatch.setattr("pipeline.training.inputs.AUTO_BYTES", size)
    assert isinstance(made("auto"), LoadedInputs)
    assert isinstance(made("ram"), ResidentInputs) and isinstance(made("none"), LoadedInputs)
