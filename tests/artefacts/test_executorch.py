"""``.pte`` files, in ExecuTorch's own runtime, where the extra is installed (it is not in the tests' environment)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artefacts.checking import check
from pipeline.artefacts.cost import fresh_process
from pipeline.artefacts.executorch_file import export_executorch
from pipeline.artefacts.metadata import read_metadata
from pipeline.artefacts.opening import open_artefact
from pipeline.errors import MissingDependencyError, ModelError
from pipeline.models import build_model

SHAPE = (1, 8, 8)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "executorch", None)
    model = build_model("mlp-16", {}, classes=3, input_shape=SHAPE)
    (tmp_path / "m.pte").write_bytes(b"x")
    with pytest.raises(MissingDependencyError, match=r"softlabels\[executorch\]"):
        export_executorch(model, SHAPE, tmp_path / "n.pte", {})
    with pytest.raises(MissingDependencyError, match=r"softlabels\[executorch\]"):
        open_artefact(tmp_path / "m.pte")


@pytest.mark.filterwarnings("ignore")  # its imports warn of torch's own changes
class TestRuntime:
    @pytest.fixture(autouse=True, scope="class")
    def _installed(self) -> None:
        pytest.importorskip("executorch", reason="the extra executorch is not installed (552 MB)")

    @pytest.mark.parametrize("name", ["cnn-8", "mlp-16"])
    def test_logits_at_every_batch(self, name: str, tmp_path: Path) -> None:
        """cnn-8: lowering a convolution traced at batch 2 would leave a largest batch of 15."""
        torch.manual_seed(0)
        model = build_model(name, {}, classes=3, input_shape=SHAPE).eval()
        export_executorch(model, SHAPE, tmp_path / "m.pte", {"softlabels": 1})
        artefact = open_artefact(tmp_path / "m.pte")
        assert (artefact.input_shape, artefact.classes, artefact.batch, artefact.largest) == (SHAPE, 3, None, 32)
        for count in (1, 2, 17, 70):
            with torch.no_grad():
                expected = model(torch.from_numpy(images(count))).numpy()
            assert check(artefact.predict, images(count), expected).faithful
        first = artefact.predict(images(1))
        kept = first.copy()
        artefact.predict(-images(1))
        np.testing.assert_array_equal(first, kept)  # an answer is not overwritten by the next
        assert artefact.metadata == read_metadata(tmp_path / "m.pte") == {"softlabels": 1}
        raw = (tmp_path / "m.pte").read_bytes()
        assert str(Path(__file__).resolve().parents[2]).encode() not in raw and torch.__file__.encode() not in raw
        export_executorch(model, SHAPE, tmp_path / "again.pte", {"softlabels": 1})
        assert (tmp_path / "again.pte").read_bytes() == raw

    def test_a_fixed_batch_and_no_metadata(self, tmp_path: Path) -> None:
        from executorch.exir import to_edge_transform_and_lower

        model = build_model("mlp-16", {}, classes=3, input_shape=SHAPE).eval()
        program = torch.export.export(model, (torch.zeros(4, *SHAPE),))
        (tmp_path / "m.pte").write_bytes(to_edge_transform_and_lower(program).to_executorch().buffer)
        artefact = open_artefact(tmp_path / "m.pte")
        assert (artefact.batch, artefact.metadata) == (4, {})
        with torch.no_grad():
            np.testing.assert_allclose(artefact.predict(images(6)), model(torch.from_numpy(images(6))), atol=1e-5)

    def test_a_fresh_process(self, tmp_path: Path) -> None:
        model = build_model("mlp-16", {}, classes=3, input_shape=SHAPE).eval()
        export_executorch(model, SHAPE, tmp_path / "m.pte", {})
        assert fresh_process(open_artefact(tmp_path / "m.pte"), starts=1).load_seconds > 0

    def test_damaged_files_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "m.pte").write_bytes(b"nonsense" * 100)
        with pytest.raises(ModelError, match="should be a program of ExecuTorch"):
            open_artefact(tmp_path / "m.pte")
