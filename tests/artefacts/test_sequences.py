"""Language models as files: any number of sequences of any length, in ONNX Runtime and torch.export, as in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.artefacts.card import CardFile, card
from pipeline.artefacts.checking import check
from pipeline.artefacts.cost import fresh_process
from pipeline.artefacts.counting import counts_of
from pipeline.artefacts.latency import measure
from pipeline.artefacts.metadata import ArtefactMetadata, read_metadata
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.opening import Artefact, open_artefact
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.errors import ModelError
from pipeline.models import build_model

V, T = 24, 12
METADATA = ArtefactMetadata(
    class_names=tuple(f"t{n}" for n in range(V)), preprocessing="made tokens", input_shape=(T,), discrete=True
)


def small() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"layers": 1, "heads": 2, "tied": False}
    return build_model("gpt-16", arguments, classes=V, input_shape=(T,), discrete=True).eval()


def onnx_of(model: nn.Module, folder: Path) -> Artefact:
    path = folder / "model.onnx"
    export_onnx(model, (T,), path, opset=20, metadata=METADATA.as_dict(), discrete=True)
    return open_artefact(path)


def pt2_of(model: nn.Module, folder: Path) -> Artefact:
    path = folder / "model.pt2"
    digest = export_pt2(model, (T,), path, METADATA.as_dict(), discrete=True)
    return open_artefact(path, trusted=[digest])


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    folder = tmp_path_factory.mktemp("language")
    return {"onnx": onnx_of(small(), folder), "pt2": pt2_of(small(), folder)}


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_any_batch_and_any_length_as_in_torch(kind: str, artefacts: dict[str, Artefact]) -> None:
    model, artefact = small(), artefacts[kind]
    assert (artefact.discrete, artefact.dtype, artefact.classes, artefact.batch) == (True, "int64", V, None)
    for batch, length in ((1, 1), (3, T), (5, 7), (2, 3 * T)):
        tokens = torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(tokens).numpy()
        found = artefact.predict(tokens.numpy())
        assert found.shape == (batch, length, V) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_tried_timed_and_started_as_other_files_are(kind: str, artefacts: dict[str, Artefact]) -> None:
    model, artefact = small(), artefacts[kind]
    tokens = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tried = check(artefact.predict, tokens.numpy(), model(tokens).numpy())
    assert tried.faithful and not tried.problems()
    assert measure({0: artefact.predict}, tokens.numpy(), [1, 2], seconds=0.01)[0][2].p50 > 0
    started = fresh_process(artefact, starts=1, input_shape=(T,))
    assert started.batch == 1 and started.load_seconds > 0


def test_what_a_file_says_of_itself(artefacts: dict[str, Artefact]) -> None:
    for artefact in artefacts.values():
        assert ArtefactMetadata.read(read_metadata(artefact.path)) == METADATA
    assert "discrete" not in replace(METADATA, discrete=False).as_dict()
    parameters = sum(p.numel() for p in small().parameters())
    assert counts_of(artefacts["pt2"].path).parameters == parameters
    # ONNX stores equal constants once, here the ones of three norms; a few scalars come to them.
    assert abs(counts_of(artefacts["onnx"].path).parameters - parameters) < 3 * 16


def test_the_card_of_a_language_model_runs_as_it_says(
    artefacts: dict[str, Artefact], monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = artefacts["onnx"]
    file = CardFile("model.onnx", ".onnx", artefact.bytes, artefact.sha256)
    text = card(METADATA, [file], [], name="m", trained_on="made", command="softlabels compress")
    assert "A causal language model, for 24 tokens" in text and "int64 tokens of shape (batch, length)" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(artefact.path.parent)
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert names["logits"].shape == (1, T, V)


class Fixed(nn.Module):
    """A body that turns the length into a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, V)

    def forward(self, ids: Tensor) -> Tensor:
        kept: Tensor = self.embedding(ids) * float(len(ids[0]))
        return kept.reshape(-1, int(ids.shape[1]) if ids.shape[1] == T else T, V)


@pytest.mark.parametrize("made", [onnx_of, pt2_of])
def test_a_length_that_cannot_stay_free_is_named(made: Callable[[nn.Module, Path], Artefact], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the length of Fixed would be fixed|cannot export Fixed"):
        made(Fixed().eval(), tmp_path)
