"""What artefacts say of themselves, and the card beside them: its numbers, and its lines of code, which run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.artefacts.card import CardFile, Figure, card
from pipeline.artefacts.metadata import ArtefactMetadata, Lineage, Step, read_metadata
from pipeline.artefacts.opening import open_artefact
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.errors import ModelError
from pipeline.models import build_model, save_weights

METADATA = ArtefactMetadata(
    class_names=("cat", "dog", "a|b"),
    preprocessing="pixels in [0, 1]",
    input_shape=(1, 8, 8),
    lineage=Lineage(cache="ab" * 32, teacher={"reference": "cnn-64", "args": {}, "state": "cd" * 32}, run="r", seed=3),
    steps=(Step("half of the channels removed", {"ratio": 0.5}), Step("exported")),
    made_by="softlabels 0.1.0",
)


def cards(*, figures: tuple[Figure, ...] = (), **given: Any) -> str:
    files = given.pop("files", (CardFile("m.onnx", ".onnx", 1234567, "ee" * 32, "float32"),))
    words = {"name": "A student", "trained_on": "digits", "command": "softlabels compress --recipe r.toml"}
    return card(given.pop("metadata", METADATA), files, figures, **{**words, **given})


class TestMetadata:
    def test_as_json_and_back(self) -> None:
        found = json.loads(json.dumps(METADATA.as_dict()))
        assert ArtefactMetadata.read(found) == METADATA
        assert ArtefactMetadata.read({**found, "later": 1}) == METADATA

    def test_times_and_hosts_are_no_part_of_it(self) -> None:
        names = {f.name for kind in (ArtefactMetadata, Lineage, Step) for f in dataclasses.fields(kind)}
        assert not [name for name in names if re.search("time|date|host|path|user", name)]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"softlabels": None}, "should be written by Softlabels"),
            ({"softlabels": True}, "should be written by Softlabels"),
            ({"softlabels": 2}, "of version 2; this release knows 1"),
            ({"class_names": "abc"}, "class_names should be a list"),
            ({"class_names": [1]}, "classes by texts"),
            ({"input_shape": [1.5]}, "sizes by numbers"),
            ({"lineage": []}, "lineage should be a dict"),
            ({"lineage": {"seed": "x"}}, "seed should be a int"),
            ({"steps": [1]}, "steps as objects"),
            ({"steps": [{"what": 1}]}, "what should be a str"),
        ],
    )
    def test_other_values_are_named(self, change: dict[str, Any], said: str) -> None:
        with pytest.raises(ModelError, match=said):
            ArtefactMetadata.read({**METADATA.as_dict(), **change})

    def test_every_kind_of_file_carries_it(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        onnx_file = pytest.importorskip("pipeline.artefacts.onnx_file")
        model = build_model("mlp-16", {}, classes=3, input_shape=(1, 8, 8)).eval()
        onnx_file.export_onnx(model, (1, 8, 8), tmp_path / "m.onnx", opset=18, metadata=METADATA.as_dict())
        digest = export_pt2(model, (1, 8, 8), tmp_path / "m.pt2", METADATA.as_dict())
        save_weights(tmp_path / "m.safetensors", model, METADATA.as_dict())
        for name in ("m.onnx", "m.pt2", "m.safetensors"):
            assert ArtefactMetadata.read(read_metadata(tmp_path / name)) == METADATA
        for name in ("m.onnx", "m.pt2"):
            assert open_artefact(tmp_path / name, trusted=[digest]).metadata == METADATA.as_dict()

    def test_other_kinds_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "m.pkl").write_bytes(b"x")
        with pytest.raises(ModelError, match="checkpoint or pickle"):
            read_metadata(tmp_path / "m.pkl")


class TestCard:
    def test_front_matter_is_yaml(self) -> None:
        front = yaml.safe_load(cards(licence="apache-2.0").split("---\n")[1])
        assert front["license"] == "apache-2.0" and front["library_name"] == "onnx" and "onnx" in front["tags"]
        assert "license" not in yaml.safe_load(cards().split("---\n")[1])

    def test_figures_stand_with_their_n(self) -> None:
        text = cards(
            figures=(
                Figure("m.onnx", "top-1 accuracy", 99.6, "%", 500, "test examples", (98.6, 99.9)),
                Figure("m.onnx", "latency at batch 32", 1.04, "ms", 200, "calls", note="Xeon, 1 thread"),
            )
        )
        assert "| m.onnx | top-1 accuracy | 99.6 % (98.6 to 99.9) | 500 test examples |  |" in text
        assert "| m.onnx | latency at batch 32 | 1.04 ms | 200 calls | Xeon, 1 thread |" in text
        assert "95% intervals" in text and "1,234,567" in text
        assert "Nothing was measured." in cards()

    def test_figures_without_n_or_file_are_refused(self) -> None:
        for wrong in (Figure("m.onnx", "a", 1.0, "", 0, ""), Figure("x.onnx", "a", 1.0, "", 5, "")):
            with pytest.raises(ModelError, match="say its n"):
                cards(figures=(wrong,))
        with pytest.raises(ModelError, match="should have files"):
            cards(files=())

    def test_lineage_steps_and_command(self) -> None:
        text = cards()
        assert "1. half of the channels removed (ratio=0.5)\n2. exported" in text
        assert f"| soft labels | {'ab' * 32} |" in text and "reference cnn-64" in text
        assert "| options of the run | not recorded |" in text
        assert "```sh\nsoftlabels compress --recipe r.toml\n```" in text
        assert "2 a|b" in text and "A student repeats" in text
        assert "A student repeats" not in cards(metadata=dataclasses.replace(METADATA, lineage=Lineage()))

    def test_robustness_is_not_claimed_unless_measured(self) -> None:
        assert "Robustness: not measured" in cards()
        assert "Robustness: 90% under noise." in cards(robustness="90% under noise")

    def test_what_others_say_breaks_no_table_and_starts_no_markup(self) -> None:
        nasty = "x | y\n<script>`z`"
        text = cards(metadata=dataclasses.replace(METADATA, lineage=Lineage(run=nasty), preprocessing=nasty))
        assert "| run | x \\| y &lt;script>'z' |" in text and "<script>" not in text
        assert "````sh\na ``` b\n````" in cards(command="a ``` b")

    def test_it_is_a_pure_function(self) -> None:
        assert cards() == cards()

    def test_its_lines_of_code_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("onnxscript")
        onnx_file = pytest.importorskip("pipeline.artefacts.onnx_file")
        model = build_model("mlp-16", {}, classes=3, input_shape=(1, 8, 8)).eval()
        onnx_file.export_onnx(model, (1, 8, 8), tmp_path / 'a "b".onnx', opset=18, metadata={})
        export_pt2(model, (1, 8, 8), tmp_path / "m.pt2", {})
        text = cards(files=(CardFile('a "b".onnx', ".onnx", 1, ""), CardFile("m.pt2", ".pt2", 1, "")))
        blocks = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
        assert len(blocks) == 2
        monkeypatch.chdir(tmp_path)
        with torch.no_grad():
            expected = model(torch.zeros(1, 1, 8, 8)).numpy()
        for block in blocks:
            made: dict[str, Any] = {}
            exec(block, made)
            np.testing.assert_allclose(made["logits"], expected, atol=1e-6)
