"""What a fresh process takes, what the machine is, and energy where it can be counted, or why not."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artefacts import cost
from pipeline.artefacts.cost import FreshProcess, fresh_process
from pipeline.artefacts.energy import Counter, Energy, energy, nvml, rapl
from pipeline.artefacts.environment import FLAGS, environment
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.opening import Artefact, open_artefact
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.errors import ConfigError, ModelError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
MIB = 2**20


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    """The same 16 MiB of weights as two files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cost")
    model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1024)).eval()
    export_onnx(model, (64,), folder / "m.onnx", opset=18, metadata={})
    digest = export_pt2(model, (64,), folder / "m.pt2", {})
    return {name: open_artefact(folder / f"m.{name}", trusted=[digest]) for name in ("onnx", "pt2")}


@pytest.fixture(scope="module")
def started(artefacts: dict[str, Artefact]) -> dict[str, FreshProcess]:
    return {kind: fresh_process(artefact, batch=2, starts=1) for kind, artefact in artefacts.items()}


class TestFreshProcess:
    @pytest.mark.parametrize("kind", ["onnx", "pt2"])
    def test_memory_and_seconds(self, kind: str, started: dict[str, FreshProcess]) -> None:
        found = started[kind]
        assert min(found.import_seconds, found.load_seconds, found.first_seconds) > 0
        assert (found.batch, found.threads, found.starts) == (2, 1, 1)
        if sys.platform == "win32":
            return
        assert found.baseline_bytes is not None and found.peak_bytes is not None and found.model_bytes is not None
        assert found.model_bytes > 0.9 * 16 * MIB, "its weights are in memory"
        assert found.baseline_bytes < found.peak_bytes < 3000 * MIB
        assert json.loads(json.dumps(found.as_dict()))["model_bytes"] == found.model_bytes

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage is the only source")
    def test_memory_of_this_process_is_not_counted(self, artefacts: dict[str, Artefact]) -> None:
        ballast = np.ones(400 * MIB, dtype=np.uint8)  # getrusage of a child would begin at this process's peak
        found = fresh_process(artefacts["onnx"], starts=1)
        assert found.peak_bytes is not None and found.peak_bytes < ballast.nbytes

    @pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell a process's peak")
    def test_onnx_is_measured_without_torch(self, started: dict[str, FreshProcess]) -> None:
        baselines = [started[kind].baseline_bytes or 0 for kind in ("onnx", "pt2")]
        assert baselines[0] < 0.7 * baselines[1], "importing torch takes more than importing ONNX Runtime"

    def test_medians_over_the_starts(self, artefacts: dict[str, Artefact], monkeypatch: pytest.MonkeyPatch) -> None:
        rows = iter([[1.0, 2.0, 3.0, 10, 20], [9.0, 1.0, 1.0, 30, 90], [2.0, 7.0, 2.0, 20, 70]])
        monkeypatch.setattr(cost, "_start", lambda *_: next(rows))
        found = fresh_process(artefacts["onnx"], starts=3)
        assert found == FreshProcess(2.0, 2.0, 2.0, 20, 70, batch=1, threads=1, starts=3)
        assert found.model_bytes == 50

    def test_where_the_system_does_not_tell(
        self, artefacts: dict[str, Artefact], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cost, "_start", lambda *_: [1.0, 2.0, 3.0, None, None])
        found = fresh_process(artefacts["onnx"], starts=2)
        assert (found.peak_bytes, found.model_bytes) == (None, None)

    def test_nothing_of_the_folder_or_the_environment_is_imported(
        self, artefacts: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert fresh_process(artefacts["onnx"], starts=1).starts == 1

    def test_a_file_that_changed_is_not_loaded(self, artefacts: dict[str, Artefact], tmp_path: Path) -> None:
        path = tmp_path / "m.pt2"
        path.write_bytes(artefacts["pt2"].path.read_bytes() + b" ")
        with pytest.raises(ModelError, match="not the file any more that was vouched for"):
            fresh_process(dataclasses.replace(artefacts["pt2"], path=path), starts=1)

    def test_failures_are_named(self, artefacts: dict[str, Artefact], tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"nothing")
        with pytest.raises(ModelError, match=r"m\.onnx could not be opened in a fresh process: .*"):
            fresh_process(dataclasses.replace(artefacts["onnx"], path=tmp_path / "m.onnx"), starts=1)
        with pytest.raises(ModelError, match=r"within 0\.01 seconds"):
            fresh_process(artefacts["onnx"], starts=1, limit=0.01)
        with pytest.raises(ConfigError, match="leaves its input's shape open"):
            fresh_process(dataclasses.replace(artefacts["onnx"], input_shape=None), starts=1)

    def test_the_batch_gives_way_to_the_files(
        self, artefacts: dict[str, Artefact], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cost, "_start", lambda *_: [1.0, 2.0, 3.0, 1, 2])
        for limits, expected in (({"batch": 8}, 8), ({"largest": 4}, 4), ({}, 16)):
            found = fresh_process(dataclasses.replace(artefacts["onnx"], **limits), batch=16, starts=1)  # type: ignore[arg-type]
            assert found.batch == expected


class TestEnvironment:
    def test_this_machine(self) -> None:
        found = json.loads(json.dumps(environment(3)))
        assert found["threads"] == 3 and found["processor"] and found["cores"] >= 1
        assert found["versions"]["torch"] == torch.__version__ and "onnxruntime" in found["versions"]
        assert found["flags"] is None or set(found["flags"]) <= set(FLAGS)

    @pytest.mark.parametrize(
        ("text", "flags"),
        [
            (
                "processor : 0\nflags\t\t: fpu avx2 avx512_vnni amx_int8 sse\n\nflags : x",
                ["avx2", "avx512_vnni", "amx_int8"],
            ),
            ("Features\t: fp asimd asimddp i8mm\n", ["asimd", "asimddp", "i8mm"]),
            ("nothing of the kind", None),
        ],
    )
    def test_flags_of_others(self, text: str, flags: list[str] | None, tmp_path: Path) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        assert environment(cpuinfo=tmp_path / "cpuinfo")["flags"] == flags
        assert environment(cpuinfo=tmp_path / "absent")["flags"] is None


def zone(root: Path, name: str, label: str, microjoules: int, end: int = 10**9) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in (("name", label), ("energy_uj", str(microjoules)), ("max_energy_range_uj", str(end))):
        (folder / file).write_text(text + "\n")
    return folder


class TestEnergy:
    def test_joules_per_example_of_all_packages(self, tmp_path: Path) -> None:
        zones = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 1000) for i in range(2)]
        zone(tmp_path, "intel-rapl:0:0", "core", 1000)
        zone(tmp_path, "intel-rapl:2", "psys", 1000)

        def predict(inputs: np.ndarray) -> np.ndarray:
            for folder in zones:  # 0.3 J for each example, on each package
                before = int((folder / "energy_uj").read_text())
                (folder / "energy_uj").write_text(str(before + 300_000 * len(inputs)))
            return inputs

        counter = rapl(tmp_path)
        assert isinstance(counter, Counter) and counter.name == "RAPL package-0+package-1"
        found = energy(predict, np.zeros((3, 4), dtype=np.float32), 5, seconds=0.001, counter=counter)
        assert isinstance(found, Energy)
        assert found.joules == pytest.approx(0.6) and found.above_rest == pytest.approx(0.6)
        assert found.batch == 5 and found.examples % 5 == 0 and found.rest_watts == 0

    def test_rest_is_taken_off(self) -> None:
        # A machine that takes 10 W whatever it does: nothing is left above rest.
        import time

        counter = Counter("clock", lambda: [10 * time.perf_counter()], (None,))
        found = energy(lambda x: x, np.zeros((1, 2), dtype=np.float32), 1, seconds=0.05, counter=counter)
        assert isinstance(found, Energy) and found.rest_watts == pytest.approx(10, rel=0.01)
        assert found.above_rest is None or found.above_rest < 0.02 * found.joules

    def test_a_counter_that_begins_again(self) -> None:
        assert Counter("x", lambda: [5.0, 7.0], (100.0, 100.0)).since([95.0, 6.0]) == 11.0

    def test_a_counter_that_stands_still(self) -> None:
        still = Counter("x", lambda: [5.0], (None,))
        found = energy(lambda x: x, np.zeros((1, 2), dtype=np.float32), 1, seconds=0.001, counter=still)
        assert isinstance(found, str) and found.startswith("not available: x did not move")

    def test_reasons_in_words(self, tmp_path: Path) -> None:
        def reason(root: Path) -> str:
            found = rapl(root)
            assert isinstance(found, str) and found.startswith("not available: ")
            return found

        assert "there is no" in reason(tmp_path / "absent")
        zone(tmp_path / "a", "intel-rapl:0:0", "core", 1)
        assert "counts no processor package" in reason(tmp_path / "a")
        broken = zone(tmp_path / "b", "intel-rapl:0", "package-0", 1)
        (broken / "energy_uj").write_text("no number")
        assert "cannot be read" in reason(tmp_path / "b")
        assert energy(lambda x: x, np.zeros((1, 1), dtype=np.float32), 1, counter="not available: so") == (
            "not available: so"
        )

    def test_a_counter_for_root_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
        path.chmod(0)
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # root reads everything
            read = Path.read_text

            def refused(self: Path) -> str:
                if self == path:
                    raise PermissionError(13, "Permission denied")
                return read(self)

            monkeypatch.setattr(Path, "read_text", refused)
        found = rapl(tmp_path)
        assert isinstance(found, str) and "for root alone" in found

    def test_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class NVMLError(Exception):
            pass

        library = types.ModuleType("pynvml")
        library.NVMLError = NVMLError  # type: ignore[attr-defined]
        library.nvmlInit = lambda: None  # type: ignore[attr-defined]
        library.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
        library.nvmlDeviceGetTotalEnergyConsumption = lambda device: 2500  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pynvml", library)
        found = nvml()
        assert isinstance(found, Counter) and found.read() == [2.5]

        def fails(device: int) -> int:
            raise NVMLError("Not Supported")

        library.nvmlDeviceGetTotalEnergyConsumption = fails  # type: ignore[attr-defined]
        assert nvml() == "not available: GPU 0 counts no energy (Not Supported)"
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert "needs pynvml" in str(nvml())
