"""Make the best student smaller and faster, and believe it only after running the file that came out.

A recipe of steps (``recipe``), declared in TOML or by options: prune, fine-tune from the cached soft labels, quantise,
export, check. Each step leaves a row and its files, which are tried in the runtime that will run them, measured as
``evaluate`` measures, and timed in turns. Controls stand beside the artefacts: the teacher merely quantised, each
pruned shape trained from scratch on the same labels, fine-tuning on hard labels, the student with the same extra
epochs. A step whose package is missing, or that does not work on this model, leaves its reason in its row. A run that
was stopped goes on after its last finished step.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.compression.bounds import broken
from pipeline.compression.carding import card_of
from pipeline.compression.choosing import Chosen, choose
from pipeline.compression.config import CompressConfig
from pipeline.compression.defaults import default_recipe, unknown_names, with_controls
from pipeline.compression.keeping import CONTROLS, tidy
from pipeline.compression.lineage import versions
from pipeline.compression.making import Maker
from pipeline.compression.recipe import BASELINE, Recipe, read_recipe
from pipeline.compression.search import command, points, recipe_to, search
from pipeline.compression.sequences import check_language, language_recipe
from pipeline.compression.steps import Check
from pipeline.compression.workshop import Workshop
from pipeline.datasets import Dataset
from pipeline.devices import use_threads
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation import EvaluateConfig, open_dataset
from pipeline.evaluation.rendering import render, timed_on
from pipeline.evaluation.sight import look
from pipeline.evaluation.table import Row, flat
from pipeline.evaluation.tabulating import tabulate
from pipeline.evaluation.teachers import Teachers, open_teachers
from pipeline.identity import digest, digest_bytes
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.runs import read_run
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

__all__ = ["CompressConfig", "CompressReport", "default_recipe", "run"]

TABLE, CARD = "table.json", "README.md"
OWN = (
    "*.onnx", "*.pt2", "*.pte", "*.safetensors", "*.toml", "recipes", CONTROLS,
    "metrics.json", "details.json", TABLE, CARD,
)  # fmt: skip
"""What a directory of compress holds."""


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
        front = [point["name"] for point in self.table["front"] if point["on_front"]]
        best = [f"front of accuracy, size and latency: {', '.join(front)}"] if front else []
        return "\n".join([*render(rows), *best, f"{head}; {timed_on(self.table['environment'])}"])

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"out": self.out, "metrics": self.metrics, "table": self.table}


def run(config: CompressConfig, progress: Progress | None = None) -> CompressReport:
    """Compress the best student of ``runs`` and write ``out``.

    Raises ConfigError, DataError or a CacheError before any work; what fails later leaves its reason in a row. Raises
    ModelError, after all is written, when a bound of a ``check`` step is broken.
    """
    progress, started = progress or Silent(), time.monotonic()
    # Without a table these may be anyone's models and notes, and the folder is replaced as a whole.
    refuse_strangers(config.out, OWN if (config.out / TABLE).is_file() else ())
    use_threads(config.threads)
    declared = None if config.recipe is None else read_recipe(config.recipe)
    trained = [read_run(path, config.allow) for path in config.runs]
    sources = {(r.config.get("data"), tuple(r.config.get("data_args") or ())) for r in trained}
    if config.data is None and len(sources) > 1:
        raise ConfigError(f"--runs should share one dataset; found {', '.join(sorted(str(d) for d, _ in sources))}")
    dataset = open_dataset(config.data, config.data_args, trained[0])
    if declared is None:
        declared = language_recipe(config) if dataset.discrete else default_recipe(config)
    if dataset.discrete:
        check_language(config, declared, dataset.name)
    chosen = choose(trained, dataset, batch_size=config.batch_size, workers=config.workers, seed=config.student_seed)
    among = f", the best of {len(trained)} runs" if len(trained) > 1 else ""
    reached = f"perplexity {math.exp(chosen.nll):,.2f}" if dataset.discrete else f"{chosen.accuracy:.2%}"
    progress.log(f"{chosen.run.name}, seed {chosen.seed}: {reached} on validation{among}")
    teachers = open_teachers(config.cache, chosen.run)
    with Workspace(config.out, _identity(config, declared, chosen, dataset, teachers)) as space:
        shop = Workshop(config, dataset, chosen, teachers, space.path, progress)
        declared = Recipe(()) if config.search else declared
        recipe = with_controls(declared, config, soft=shop.soft.soft)
        if problems := [*unknown_names(recipe, config)]:
            raise ConfigError(problems)
        maker = Maker(shop, recipe)
        maker.make()
        if config.search:
            search(maker, started)
            declared = Recipe(tuple(step for step in maker.taken if not step.control))
        table, details = _judged(maker)
        report = CompressReport(str(config.out), table, flat(maker.rows, BASELINE))
        write_atomic(space.path / "metrics.json", json_bytes(report.metrics))
        write_atomic(space.path / TABLE, json_bytes(table))
        write_atomic(space.path / "details.json", json_bytes(details, indent=None))
        write_atomic(space.path / "recipe.toml", declared.toml().encode())
        write_atomic(space.path / CARD, card_of(shop, maker.rows, table).encode())
        tidy(shop, maker.rows)
        space.commit()
    problems = [text for step in declared.steps if isinstance(step, Check) for text in broken(step, maker.rows)]
    if problems:
        progress.log(report.summary)
        raise ModelError(f"{config.out} is written, and does not keep what its recipe checks: {'; '.join(problems)}")
    return report


def _identity(
    config: CompressConfig, recipe: Recipe, chosen: Chosen, dataset: Dataset, teachers: Teachers | None
) -> str:
    """Of everything that decides what is made."""
    weights = digest_bytes(chosen.run.weights[chosen.seed].read_bytes())
    teacher = config.teacher_weights and digest_bytes(config.teacher_weights.read_bytes())
    content = {"config": config.as_dict(), "recipe": recipe.as_dict(), "student": weights, "teacher": teacher}
    labels = teachers.digest if teachers else None
    return digest({"stage": "compress", **content, "data": dataset.digest(), "cache": labels})


def _judged(maker: Maker) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table, and what is behind it: everything measured as ``evaluate`` does."""
    shop, config, chosen = maker.shop, maker.shop.config, maker.shop.chosen
    options = EvaluateConfig(
        run=chosen.run.path,
        allow=config.allow,
        out=config.out,
        data=config.data,
        data_args=config.data_args,
        batch_size=config.batch_size,
        workers=config.workers,
        latency_batch=config.latency_batch,
        latency_seconds=config.latency_seconds,
        runtime_threads=config.runtime_threads,
    )
    sight = look(options, chosen.run, shop.dataset, shop.teachers)
    candidates = list(maker.candidates.values())
    measured = tabulate(options, shop.dataset, sight, candidates, maker.rows, BASELINE, shop.progress)
    recipes = {name: recipe_to(name, maker.taken) for name in maker.candidates} if config.search else {}
    front = points(maker.rows, recipes, shop)
    for point in front:
        write_atomic(shop.folder / point.recipe, recipes[point.name].toml().encode())
    table = {
        "run": chosen.run.name,
        "seed": chosen.seed,
        "student": chosen.run.config["student"],
        "chosen_from": {r.name: accuracy for r, accuracy in chosen.considered},
        "test_examples": measured["examples"],
        **({"test_tokens": measured["tokens"]} if shop.dataset.discrete else {}),
        "validation_examples": len(shop.validation),
        "calibration_examples": len(shop.calibration),
        "finetuning": dict(shop.soft.description),
        "environment": measured["environment"],
        "command": command(shop),
        "versions": versions(),
        "recipe": [step.as_dict() for step in maker.taken],
        "rows": measured["rows"],
        "front": [asdict(point) for point in front],
    }
    return table, {"models": measured["models"]}
