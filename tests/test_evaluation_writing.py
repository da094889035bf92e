"""What language models write: the same beginnings and draws for all, and no text where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import evaluation
from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError, MissingDependencyError
from pipeline.evaluation import EvaluateConfig, writing
from pipeline.evaluation.writing import write_on
from pipeline.models import build_model
from tests.sequences import VOCABULARY, Made

ROWS = np.arange(60)


class Spoken(Made):
    """Its tokens are numbers with a space before each."""

    def text_of(self, ids: Sequence[int]) -> str:
        return "".join(f" {number}" for number in ids)


def spoken() -> Spoken:
    return Spoken()


class Next(nn.Module):
    """Puts nearly all mass on the token ``step`` after the one before; how long the contexts were is kept."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.seen = step, [0]

    def forward(self, ids_BT: Tensor) -> Tensor:
        self.seen.append(ids_BT.shape[1])
        return 100 * nn.functional.one_hot((ids_BT + self.step) % VOCABULARY, VOCABULARY).float()


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_every_model_goes_on_from_the_same_beginnings() -> None:
    models = {"one": Next(1), "two": Next(2)}
    found = write_on(spoken(), ROWS, models, teacher=Next(3))["written"]
    assert len(found["prompts"]) == writing.SAMPLES == 3 and found["prompt_tokens"] == 6  # half of 12
    for step, texts in ((1, found["models"]["one"]), (2, found["models"]["two"]), (3, found["teacher"])):
        for prompt, text in zip(found["prompts"], texts, strict=True):
            last, said = numbers(prompt)[-1], numbers(text)
            assert len(numbers(prompt)) == 6 and len(said) == writing.TOKENS == 64
            assert said == [(last + step * (n + 1)) % VOCABULARY for n in range(64)]
    assert max(models["one"].seen) == 12, "no more than the longest sequence"


def test_beginnings_are_of_the_rows_spread_and_go_on_as_the_data_do() -> None:
    data, rows = spoken(), ROWS[20:50]
    found = write_on(data, rows, {}, samples=5)["written"]
    lengths = {int(row): int(np.flatnonzero(data.targets(np.array([row]))[0] >= 0).max()) + 1 for row in rows}
    fit = [row for row in rows if lengths[int(row)] > 6]
    places = [data.ids.index(name) for name in found["ids"]]
    assert places[0] == fit[0] and places[-1] == fit[-1] and len(set(places)) == 5 and set(places) <= set(fit)
    for place, prompt, text in zip(places, found["prompts"], found["text"], strict=True):
        ids = data.load(place).tolist()
        assert numbers(prompt) == ids[:6] and numbers(text) == ids[6 : lengths[place]]


def test_the_same_model_writes_the_same_and_another_prompt_draws_other_numbers() -> None:
    torch.manual_seed(0)
    given = {"layers": 1, "heads": 1}
    model = build_model("gpt-8", given, classes=VOCABULARY, input_shape=(12,), discrete=True)
    found = write_on(spoken(), ROWS, {"a": model, "b": model}, samples=2)["written"]
    assert found["models"]["a"] == found["models"]["b"] and found["models"]["a"][0] != found["models"]["a"][1]
    assert model.training, "as it was"


def test_nothing_where_there_is_no_text_or_none_is_asked_for() -> None:
    assert write_on(load_dataset("digits", {}), ROWS, {"m": Next(1)}, samples=3) == {}
    assert write_on(spoken(), ROWS, {"m": Next(1)}, samples=0) == {}
    assert write_on(Made(), ROWS, {"m": Next(1)}) == {"written": {"note": "made does not know its text (text_of)"}}
    assert write_on(spoken(), ROWS[:0], {})["written"] == {"note": "no sequence has more than 6 tokens"}

    class Silent(Made):
        def text_of(self, ids: Sequence[int]) -> str:
            raise MissingDependencyError("pip install 'softlabels[lm]'")

    assert write_on(Silent(), ROWS, {"m": Next(1)})["written"] == {"note": "pip install 'softlabels[lm]'"}


def test_an_evaluation_keeps_them(tmp_path: Path) -> None:
    from pipeline import teacher, training

    data = "tests.test_evaluation_writing:spoken"
    shared: dict[str, Any] = {"data": data, "threads": 1, "device": "cpu", "epochs": 1}
    arguments = ("layers=1", "heads=1")
    teacher.run(teacher.FitTeacherConfig(**shared, teacher="gpt-8", teacher_args=arguments, out=tmp_path / "teacher"))
    made = training.TrainConfig(
        **shared, student="gpt-8", student_args=arguments, seeds=2, alpha=0.0, beta=1.0, out=tmp_path / "runs"
    )
    training.run(made)
    shared = {"data": data, "allow": (data,), "device": "cpu", "threads": 1, "cost": False}
    options = {**shared, "teacher": tmp_path / "teacher"}
    one = evaluation.run(EvaluateConfig(**options, run=tmp_path / "runs", samples=1, out=tmp_path / "one"))
    several = (str(tmp_path / "runs"), str(tmp_path / "teacher"))
    two = evaluation.run(EvaluateConfig(**options, models=several, samples=1, out=tmp_path / "two"))
    assert list(two.details["written"]["models"]) == ["runs", "teacher"] and "written" not in one.metrics
    assert two.details["written"]["models"]["runs"] == one.details["written"]["models"]["runs"]
    assert two.details["written"]["teacher"] == two.details["written"]["models"]["teacher"]
    with pytest.raises(ConfigError, match="--samples should be at least 0"):
        EvaluateConfig(**options, run=tmp_path / "runs", samples=-1, out=tmp_path / "three")
