"""Make the best student smaller and faster, and believe it only after running the file that came out.

prune -> measure batch norms again -> fine-tune from the cached soft labels -> export to ONNX -> int8 -> run each file
in ONNX Runtime. Controls stand beside the artefacts: the teacher as it is and merely quantised, the pruned shape
trained from scratch on the same labels, and the student given the same extra epochs. A step whose package is missing,
or that does not work on this model, leaves its reason in its row.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.artefacts.latency import processor_name
from pipeline.compression.config import CompressConfig
from pipeline.compression.making import Maker, choose
from pipeline.compression.table import Row, flat, render
from pipeline.devices import use_threads
from pipeline.errors import ConfigError
from pipeline.evaluation import open_dataset
from pipeline.identity import digest
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.runs import read_run
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

__all__ = ["CompressConfig", "CompressReport", "run"]


@dataclass(frozen=True)
class CompressReport:
    """The rows, which run and seed they come from, and on what they were timed."""

    out: str
    table: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def summary(self) -> str:
        """The table, then one line."""
        rows = [Row(**row) for row in self.table["rows"]]
        made = sum(1 for row in rows if row.file)
        head = f"{self.out}: {made} file{'' if made == 1 else 's'} from {self.table['run']}, seed {self.table['seed']}"
        timed = f"timed on {self.table['processor']}, {self.table['runtime_threads'] or 'all'} thread(s)"
        return "\n".join([*render(rows), f"{head}; {timed}"])

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"out": self.out, "metrics": self.metrics, "table": self.table}


def run(config: CompressConfig, progress: Progress | None = None) -> CompressReport:
    """Compress the best student of ``runs`` and write ``out``.

    Raises ConfigError, DataError or a CacheError before any work; what fails later leaves its reason in a row.
    """
    progress = progress or Silent()
    refuse_strangers(config.out, ("*.onnx", "metrics.json", "table.json"))
    use_threads(config.threads)
    trained = [read_run(path, config.allow) for path in config.runs]
    sources = {(r.config.get("data"), tuple(r.config.get("data_args") or ())) for r in trained}
    if config.data is None and len(sources) > 1:
        raise ConfigError(f"--runs should share one dataset; found {', '.join(sorted(str(d) for d, _ in sources))}")
    dataset = open_dataset(config.data, config.data_args, trained[0])
    chosen = choose(trained, dataset, batch_size=config.batch_size, workers=config.workers)
    among = f", the best of {len(trained)} runs" if len(trained) > 1 else ""
    progress.log(f"{chosen.run.name}, seed {chosen.seed}: {chosen.accuracy:.2%} on validation{among}")
    with Workspace(config.out, digest({"stage": "compress", **config.as_dict()})) as space:
        space.clear()
        maker = Maker(config, dataset, chosen, space.path, progress)
        rows = maker.make()
        table = {
            "run": chosen.run.name,
            "seed": chosen.seed,
            "student": chosen.run.config["student"],
            "chosen_from": {r.name: accuracy for r, accuracy in chosen.considered},
            "test_examples": maker.test_examples,
            "validation_examples": maker.validation_examples,
            "calibration_examples": maker.calibration_examples,
            "finetuning": dict(maker.tuning.description),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "runtime_threads": config.runtime_threads,
            "versions": maker.versions,
            "rows": [asdict(row) for row in rows],
        }
        report = CompressReport(str(config.out), table, flat(rows, "baseline"))
        write_atomic(space.path / "metrics.json", json_bytes(report.metrics))
        write_atomic(space.path / "table.json", json_bytes(table))
        space.commit()
    return report
