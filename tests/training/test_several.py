"""Teachers that know some of the classes, from their fit to a student; and the choice of teacher in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from pipeline.datasets import knowing, load_dataset
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.losses import distillation_loss
from pipeline.models import build_model, read_metadata, save_weights
from pipeline.sampler import Order
from pipeline.softlabels import Dense, Opinions
from pipeline.sources import CachedLabels, Member, Mixture, Panel, match
from pipeline.store import open_cache
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.stage import initial_student
from stages.cli import main

CLASSES = ("ant", "bee", "cat", "dog")
LABELS = np.arange(64) % 4
TRAIN = 40
Configure = Callable[..., TrainConfig]


def softlabels(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: Any) -> str:
    found = softlabels(*words)
    assert found.exit_code == 0, found.output + found.stderr
    return str(found.output)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, whole teachers a and b, and specialists: ab (ant, bee), cd (dog, cat: in another order), abc."""
    made = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 1, 5, 5))[LABELS] + 0.7 * random.normal(size=(64, 1, 5, 5))
    split = np.repeat(["train", "validation", "test"], [TRAIN, 12, 12])
    ids = np.array([f"e{i:02d}" for i in range(64)])
    np.savez(made / "data.npz", x=x.astype(np.float32), y=LABELS, ids=ids, split=split, classes=np.array(CLASSES))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = build_model("mlp-8", {}, classes=4, input_shape=(1, 5, 5))
        for parameter in model.parameters():
            parameter.data *= 4
        save_weights(made / f"{name}.safetensors", model, {})
        _dump(made, name, made / f"{name}.safetensors")
    for name, classes in (("ab", "ant,bee"), ("cd", "dog,cat"), ("abc", "ant,bee,cat")):
        words = ("--data", f"arrays:{made / 'data.npz'}", "--teacher", "mlp-8", "--classes", classes, "--device", "cpu")
        done("fit-teacher", *words, "--epochs", 30, "--lr", 0.02, "--views", 0, "--out", made / f"t-{name}")
        _dump(made, name, made / f"t-{name}" / "model.safetensors", "--classes", classes)
    return made


def _dump(folder: Path, name: str, weights: Path, *options: str) -> None:
    words = ("--data", f"arrays:{folder / 'data.npz'}", "--teacher", "mlp-8", "--weights", weights, "--part-size", 16)
    done("dump", *words, "--device", "cpu", *options, "--out", folder / name)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Configure:
    def make(*names: str, **options: Any) -> TrainConfig:
        base: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "student": "mlp-4", "out": tmp_path / "run"}
        base |= {"epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu"}
        base |= {"labels": tuple(str(folder / name) for name in names)}
        return TrainConfig(**(base | options))

    return make


def hard_labels(kept: slice) -> npt.NDArray[np.int64]:
    labels = np.full(64, -1)
    labels[:TRAIN][kept] = LABELS[:TRAIN][kept]
    return labels


def panel(folder: Path, *names: str, **options: Any) -> Panel:
    data = load_dataset(f"arrays:{folder / 'data.npz'}")
    matchings = [match(open_cache(folder / name), data, partly=True) for name in names]
    sources = [CachedLabels(open_cache(folder / n), m) for n, m in zip(names, matchings, strict=True)]
    members = [Member(s, w + 1.0, m.knows) for w, (s, m) in enumerate(zip(sources, matchings, strict=True))]
    return Panel(members, classes=4, **options)


# A specialist and its cache.


def test_a_specialist_learns_and_is_measured_on_its_own_classes(folder: Path) -> None:
    report = json.loads((folder / "t-cd" / "report.json").read_text())
    assert read_metadata(folder / "t-cd" / "model.safetensors")["class_names"] == ["dog", "cat"]
    assert report["steps"] == 30 and report["epochs"] == 30, "20 of the 40 examples are dogs and cats"
    test = [row for row in range(52, 64) if CLASSES[LABELS[row]] in ("dog", "cat")]
    assert (report["test_accuracy"] * len(test)) % 1 == pytest.approx(0, abs=1e-9)
    assert report["test_accuracy"] > 0.8


def test_its_cache_speaks_of_its_classes(folder: Path) -> None:
    cache = open_cache(folder / "cd")
    assert cache.class_names == ("dog", "cat") and cache.classes == 2
    assert cache.identity["data"] == open_cache(folder / "a").identity["data"]
    assert cache.index(cache.parts[0]).labels.tolist() == [{3: 0, 2: 1}.get(int(label), -1) for label in LABELS[:16]]
    teacher = ("--teacher", "mlp-8", "--weights", folder / "t-cd" / "model.safetensors")
    words = ("cache", "verify", folder / "cd", *teacher, "--data", f"arrays:{folder / 'data.npz'}", "--device", "cpu")
    assert "within the declared" in done(*words)


def test_examples_of_other_classes_have_no_label() -> None:
    dataset = load_dataset("digits")
    assert knowing(dataset, ()) is dataset
    some = knowing(dataset, ("7, 2", "9"))
    assert some.classes == ("7", "2", "9") and some.digest() == dataset.digest()
    expected = [{7: 0, 2: 1, 9: 2}.get(int(label), -1) for label in dataset.labels]
    assert some.labels.tolist() == expected
    torch.testing.assert_close(some.prepare(some.load(3)), dataset.prepare(dataset.load(3)))
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*found 12.*names 7 more than once"):
        knowing(dataset, ("7,12,7",))
    with pytest.raises(ConfigError, match="two classes or more"):
        knowing(dataset, ("7",))


def test_others_refuse_such_a_cache(folder: Path, tmp_path: Path) -> None:
    data = load_dataset(f"arrays:{folder / 'data.npz'}")
    cache = open_cache(folder / "cd")
    assert match(cache, data, partly=True).knows == (3, 2)
    assert match(open_cache(folder / "a"), data, partly=True).knows is None
    with pytest.raises(CacheMismatchError, match=r"2 classes there, 4 here\. It knows some of them alone \(dog, cat\)"):
        CachedLabels(cache, data)
    words = ("dump", "--data", f"arrays:{folder / 'data.npz'}", "--teacher", "mlp-8", "--out", tmp_path / "x")
    found = softlabels(*words, "--weights", folder / "t-cd" / "model.safetensors")
    assert found.exit_code == 1 and "knows 2 of the dataset's 4 classes" in found.stderr


# The panel.


def test_a_specialist_counts_for_its_own_examples_and_those_without_label(folder: Path) -> None:
    labels = hard_labels(slice(0, 8))  # the others of the training set have none
    rows = np.arange(12)
    found = panel(folder, "ab", "abc", labels=labels).counts(rows)
    own = [[label in known for label in LABELS[:8]] + [True] * 4 for known in ((0, 1), (0, 1, 2))]
    np.testing.assert_array_equal(found, own)
    weights = panel(folder, "ab", "abc", labels=labels).weights_of(rows)
    np.testing.assert_allclose(weights[:, :4], [[1 / 3, 1 / 3, 0, 0], [2 / 3, 2 / 3, 1, 0]], rtol=1e-6)
    assert panel(folder, "ab", "abc", labels=labels).has(rows).tolist() == [i >= 8 or i % 4 < 3 for i in range(12)]
    for everyone in (panel(folder, "ab", "abc", labels=labels, foreign="keep"), panel(folder, "ab", "abc")):
        assert everyone.counts(rows).all()


@pytest.mark.parametrize("resident", ["none", "device"])
def test_opinions_are_those_of_the_caches(folder: Path, config: Configure, resident: str) -> None:
    options = config("ab", "cd", mix="losses", resident=resident)
    task = prepare(options).task
    assert isinstance(task.source, Panel)
    order = Order(task.blocks, 7, seed=1)
    stream = task.source.stream(order, 0)
    for rows in order.epoch(0):
        found = stream.next(torch.empty(0), rows)
        assert isinstance(found, Opinions)
        for name, numbers, opinion in zip(("ab", "cd"), ([0, 1], [3, 2]), found.opinions, strict=True):
            cache = open_cache(folder / name)
            assert opinion.classes is not None and opinion.classes.tolist() == numbers
            assert isinstance(opinion.soft, Dense)
            stored = cache.decode(cache.read_rows("train", 0, rows)).logits
            np.testing.assert_array_equal(opinion.soft.logits.numpy(), stored)
            np.testing.assert_array_equal(opinion.weights.numpy(), np.isin(LABELS[rows], numbers))
    stream.close()


def test_what_a_panel_cannot_be(folder: Path) -> None:
    source = panel(folder, "cd").sources[0]
    for member, said in (
        (Member(source, 1.0, (0, 1, 2)), "answers for 2 classes, not 3"),
        (Member(source), "answers for 2 classes, not 4"),
        (Member(source, 1.0, (1, 1)), "should be some of 0 to 3"),
        (Member(source, 1.0, (1, 4)), "should be some of 0 to 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            Panel([member], classes=4)
    with pytest.raises(ConfigError, match="at least one member"):
        Panel([], classes=4)
    with pytest.raises(ConfigError, match="foreign should be one of skip, keep"):
        panel(folder, "cd", foreign="never")


# Runs.


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("ab", "cd"), {}, r"ab knows 2 of the 4 classes \(ant, bee\), and --mix probs is of teachers that know all"),
        (("a", "cd"), {"mix": "logits"}, "cd knows 2 of the 4 classes .*--mix losses"),
        (
            ("ab",),
            {"alpha": 1.0},
            "nobody would teach the student cat, dog: .*ab know other classes, and .* no hard term",
        ),
        (("ab", "abc"), {"mix": "losses", "alpha": 1.0}, "nobody would teach the student dog"),
        (("ab", "cd"), {"mix": "losses", "alpha": 1.0}, "how likely ant, bee are against cat, dog: no chain of shared"),
        (("ab", "cd"), {"mix": "losses", "loss": "dkd"}, "--loss dkd needs the hard label among the classes"),
        (("ab",), {"omit_class": "dog"}, "nobody would teach the student dog: .*no such example labelled"),
        (("a", "b"), {"mix": "losses", "foreign": "keep"}, "--foreign is of caches that know some"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    config: Configure, names: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(config(*names, **options))


def test_shared_classes_tie_teachers_together(config: Configure) -> None:
    for names in (("abc", "cd"), ("ab", "cd", "a")):
        prepared = prepare(config(*names, mix="losses", alpha=1.0))
        assert prepared.task.objective.beta == 0 and isinstance(prepared.task.source, Panel)


def test_one_specialist_teaches_beside_the_hard_labels(config: Configure) -> None:
    prepared = prepare(config("cd"))
    assert isinstance(prepared.task.source, Panel) and prepared.lineage["foreign"] == "skip"
    assert prepared.notes[0].endswith("cd knows dog, cat alone")
    assert prepared.task.examples == TRAIN
    np.testing.assert_array_equal(prepared.task.source.has(np.arange(TRAIN)), LABELS[:TRAIN] >= 2)


def test_hard_labels_that_training_may_not_know_stay_unknown(config: Configure) -> None:
    """Under --labelled-fraction neither the choice of who is right nor the one of who counts looks at the others."""
    few = {"labelled_fraction": 0.2}
    correct = prepare(config("a", "b", mix="correct", **few)).task
    apart = prepare(config("ab", "cd", mix="losses", **few)).task
    assert isinstance(correct.source, Mixture) and isinstance(apart.source, Panel)
    np.testing.assert_array_equal(correct.source.labels, correct.labels)
    assert 0 < (correct.labels >= 0).sum() < TRAIN / 2
    counts = apart.source.counts(np.arange(TRAIN)).sum(axis=0)
    np.testing.assert_array_equal(counts == 1, apart.labels[:TRAIN] >= 0)


@pytest.mark.parametrize("missing", ["skip", "hard"])
def test_each_specialist_may_hold_examples_of_its_own(
    folder: Path, config: Configure, tmp_path: Path, missing: str
) -> None:
    """A cache of the first 24 examples and one of all: a row stays where any has labels."""
    held = dict(np.load(folder / "data.npz"))
    kept = np.r_[0:24, TRAIN:64]
    np.savez(tmp_path / "some.npz", **{n: v if n == "classes" else v[kept] for n, v in held.items()})
    words = ("--teacher", "mlp-8", "--weights", folder / "t-ab" / "model.safetensors", "--classes", "ant,bee")
    done("dump", "--data", f"arrays:{tmp_path / 'some.npz'}", *words, "--device", "cpu", "--out", tmp_path / "few")
    for resident in ("none", "ram"):
        options = config(str(tmp_path / "few"), "cd", mix="losses", missing=missing, resident=resident)
        prepared = prepare(options)
        assert prepared.task.examples == TRAIN and isinstance(prepared.task.source, Panel)
        counts = prepared.task.source.counts(np.arange(TRAIN))
        np.testing.assert_array_equal(counts[0], (LABELS[:TRAIN] < 2) & (np.arange(TRAIN) < 24))
        fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0)


def test_losses_of_whole_teachers_have_the_gradient_of_their_mean(folder: Path, config: Configure) -> None:
    found = []
    for mix in ("losses", "probs"):
        options = config("a", "b", mix=mix, alpha=1.0, optimizer="sgd", temperature=2.0)
        prepared = prepare(options)
        model = initial_student(options, prepared.dataset, 0)
        fit(model, prepared.task, options, seed=0)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_cached_panel_is_the_loss_by_hand(folder: Path, config: Configure) -> None:
    """The first step of a run, from logits straight out of the store."""
    options = config("ab", "cd", mix="losses", temperature=3.0, batch_size=TRAIN, epochs=1, alpha=0.6)
    prepared = prepare(options)
    model = initial_student(options, prepared.dataset, 0).double()
    x = torch.stack([prepared.dataset.prepare(prepared.dataset.load(row)) for row in range(TRAIN)]).double()
    with torch.no_grad():
        student = model(x)
    expected = 0.4 * torch.nn.functional.cross_entropy(student, torch.from_numpy(LABELS[:TRAIN]))
    for name, numbers in (("ab", [0, 1]), ("cd", [3, 2])):
        cache = open_cache(folder / name)
        rows = np.flatnonzero(np.isin(LABELS[:TRAIN], numbers))
        soft = Dense(torch.tensor(cache.decode(cache.read_rows("train", 0, rows)).logits).double())
        expected += 0.6 * distillation_loss(student[rows][:, numbers], soft, temperature=3.0).sum() / TRAIN
    losses: list[float] = []
    fit(
        initial_student(options, prepared.dataset, 0),
        prepared.task,
        options,
        seed=0,
        on_step=lambda step, loss: losses.append(float(loss)),
    )
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_runs_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    def train(out: str, *options: Any) -> Any:
        words = ("train", "--data", f"arrays:{folder / 'data.npz'}", "--student", "mlp-4", "--epochs", 2)
        return softlabels(*words, "--device", "cpu", *options, "--out", tmp_path / out)

    def lineage(out: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / out / "run.json").read_text())["lineage"]
        return found

    specialists = ("--labels", folder / "abc", "--labels", f"{folder / 'cd'}=2", "--mix", "losses")
    made = train("panel", *specialists)
    assert made.exit_code == 0, made.stderr
    assert f"{folder / 'cd'} knows dog, cat alone" in made.stderr
    assert lineage("panel")["mix"] == "losses" and lineage("panel")["foreign"] == "skip"
    assert "found finished" in train("panel", *specialists).output
    kept = train("panel", *specialists, "--foreign", "keep")
    assert kept.exit_code == 2 and "foreign skip there, keep here" in kept.stderr
    both = ("--labels", folder / "a", "--labels", folder / "b")
    for mix in ("confident", "correct", "losses"):
        assert train(mix, *both, "--mix", mix).exit_code == 0
        assert lineage(mix)["mix"] == mix and "foreign" not in lineage(mix)
        evaluated = softlabels("evaluate", "--run", tmp_path / mix, "--device", "cpu", "--out", tmp_path / f"e-{mix}")
        assert evaluated.exit_code == 0, evaluated.stderr
    other = train("correct", *both, "--mix", "confident")
    assert other.exit_code == 2 and "mix correct there, confident here" in other.stderr
    words = ("evaluate", "--run", tmp_path / "panel", "--device", "cpu", "--out", tmp_path / "e")
    refused = softlabels(*words)
    assert (
        refused.exit_code == 1 and "It knows some of them alone" in refused.stderr and "--cache none" in refused.stderr
    )
    assert softlabels(*words, "--cache", "none").exit_code == 0
    assert softlabels(*words, "--cache", folder / "a").exit_code == 0


def test_top_k_caches_of_several_teachers(folder: Path, config: Configure, tmp_path: Path) -> None:
    weights = folder / "a.safetensors"
    words = ("--data", f"arrays:{folder / 'data.npz'}", "--teacher", "mlp-8", "--weights", weights, "--device", "cpu")
    done("dump", *words, "--encoding", "topk", "--k", 2, "--temperature", 4, "--out", tmp_path / "topk")
    options = config(str(tmp_path / "topk"), "b", mix="losses")
    prepared = prepare(options)
    fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0)
    with pytest.raises(ConfigError, match=r"topk, and .*--mix losses"):
        prepare(config(str(tmp_path / "topk"), "b"))
