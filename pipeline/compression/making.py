"""A recipe run from its first step to its last: each leaves a row and its files, and is not done again when resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.artefacts.checking import Floats, check
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.opening import Artefact
from pipeline.compression import keeping
from pipeline.compression.lineage import about
from pipeline.compression.performing import perform
from pipeline.compression.quantisation import unfused
from pipeline.compression.recipe import BASELINE, TEACHER, Recipe
from pipeline.compression.steps import Finetune, Prune, Scratch, Step
from pipeline.compression.workshop import JOURNAL, Product, Workshop, model_of
from pipeline.errors import MissingDependencyError, ModelError
from pipeline.evaluation.candidates import Candidate, as_tensors
from pipeline.evaluation.scoring import torch_predictor
from pipeline.evaluation.table import Row
from pipeline.models.macs import count_nonzeros, known_macs
from pipeline.outputs import json_bytes
from pipeline.runs import parameter_count
from pipeline.workspace import write_atomic


class Maker:
    """``rows`` and ``candidates`` are what has been made so far, in order."""

    def __init__(self, shop: Workshop, recipe: Recipe) -> None:
        self.shop, self.recipe = shop, recipe
        self.rows: list[Row] = []
        self.candidates: dict[str, Candidate] = {}
        self.ratios: dict[str, float] = {}
        self.taken: list[Step] = []
        self._products: dict[str, Product] = {}
        self._steps: dict[str, tuple[Step, ...]] = {BASELINE: (), TEACHER: ()}
        (shop.folder / JOURNAL).mkdir(exist_ok=True)

    def make(self) -> list[Row]:
        """The models that compression starts from, then every step."""
        starts = [BASELINE] if self.shop.config.teacher is None else [TEACHER, BASELINE]
        steps = [step for step in self.recipe.steps if step.makes]
        with self.shop.progress.bar("compress", len(starts) + len(steps), "steps") as bar:
            for name in starts:
                self.start(name)
                bar.update(1)
            for step in steps:
                self.take(step)
                bar.update(1)
        return self.rows

    def start(self, name: str) -> None:
        """The student or the teacher as they are."""
        what = "the student, float32" if name == BASELINE else "the teacher as it is"
        row = Row(name, what, control=name == TEACHER)

        def make() -> Product:
            return Product(name, self.shop.original(name))

        self._attempt(row, make, file=True)

    def take(self, step: Step) -> None:
        """One step of the recipe."""
        self.taken.append(step)
        self._steps[step.name] = (*self._steps.get(step.of, ()), step)
        row = Row(step.name, self._words(step), source=step.of, control=step.control)

        def make() -> Product:
            if step.of not in self._products:
                raise ModelError(f"needs {step.of}, which was skipped")
            return perform(self._steps[step.name], self._products[step.of], self.shop, row, self.ratios)

        # Controls that are trained are not deployed: their accuracy counts, and no file is made of them.
        self._attempt(row, make, file=not (step.control and isinstance(step, (Prune, Finetune, Scratch))))

    def _words(self, step: Step) -> str:
        return " ".join([step.kind, *(f"{key}={value}" for key, value in step.options().items())])

    def _attempt(self, row: Row, make: Callable[[], Product], *, file: bool) -> None:
        """Make one row, or take it from the journal; an expected failure becomes its reason."""
        journal = self.shop.folder / JOURNAL / f"{row.name}.json"
        if self._found(journal):
            return
        started = time.perf_counter()
        self.rows.append(row)
        try:
            self._finish(row, make(), file=file)
        except (MissingDependencyError, ModelError) as error:
            row.skipped = str(error)
            self.shop.progress.log(f"{row.name} skipped: {error}")
        row.seconds = round(time.perf_counter() - started, 2)
        kept = keeping.save(self.shop, self._products.get(row.name), row, self._steps[row.name])
        write_atomic(journal, json_bytes({"row": asdict(row), "ratios": self.ratios, "product": kept}))

    def _found(self, journal: Path) -> bool:
        """Take a row from the journal; an entry that is damaged, or whose files are, is one that is not there."""
        found = keeping.read(journal)
        if found is None:
            return False
        try:
            row, ratios = Row(**found["row"]), dict(found["ratios"])
            product = keeping.load(self.shop, row.name, found["product"])
            if product is not None:
                # A file that could not be opened is there for later steps to name their reason, and not to answer.
                self._serve(row, product if row.file else replace(product, file=None))
                self._products[row.name] = product
        except (KeyError, TypeError, ValueError, MissingDependencyError):  # a ModelError is a ValueError
            return False
        self.rows.append(row)
        self.ratios.update(ratios)
        return True

    def _finish(self, row: Row, product: Product, *, file: bool) -> None:
        """Count, export, open and try what was made."""
        source = None if row.source is None else self._products[row.source]
        if source is not None:
            product = replace(product, root=source.root)
        if product.model is not None:
            row.parameters, row.nonzeros = parameter_count(product.model), count_nonzeros(product.model)
            row.macs = known_macs(product.model, self.shop.example[:1])
            self._products[row.name] = replace(product, file=None)
            self._serve(row, self._products[row.name])  # its figures come from torch where no file can be made of it
            logits, exact = self.shop.logits(product.model), True
            if file and product.file is None:
                path = self.shop.folder / f"{row.name}.onnx"
                says = about(self.shop, product.root, self._steps[row.name]).as_dict()
                shape, opset = self.shop.dataset.input_shape, self.shop.config.opset
                discrete = self.shop.dataset.discrete
                export_onnx(product.model, shape, path, opset=opset, metadata=says, discrete=discrete)
                product = replace(product, file=path)
        else:
            before = next(other for other in self.rows if other.name == row.source)
            row.parameters, row.macs = before.parameters, before.macs
            logits, exact = self.candidates[str(row.source)].timed(self.shop.chosen.seed)(self.shop.tried), False
        self._products[row.name] = product
        if product.file is not None:
            self._try(row, product, logits, exact)

    def _try(self, row: Row, product: Product, source_logits: Floats, exact: bool) -> None:
        """Open a finished file, hold it against its source, and let it compute the row's figures."""
        path = product.file
        assert path is not None
        try:
            artefact = keeping.opened(self.shop, path)
            tried = check(artefact.predict, self.shop.tried, source_logits)
            row.tried(tried)
            if exact and not tried.faithful:
                raise ModelError(
                    f"{path.name} should give the logits of its model; they differ by {tried.max_difference:.3g} at a "
                    f"largest logit of {tried.scale:.3g}. Try another --opset"
                )
        except MissingDependencyError:
            if product.model is None:
                del self._products[row.name]
            raise
        except ModelError:
            path.unlink()
            if product.model is None:
                del self._products[row.name]
            else:
                self._products[row.name] = replace(product, file=None)
            raise
        row.file, row.bytes = path.name, artefact.bytes
        if row.activations is not None:  # int8: whatever does not run in integers is slower than it could be
            row.warnings.extend(unfused(path))
        self._serve(row, product, artefact)

    def _serve(self, row: Row, product: Product, artefact: Artefact | None = None) -> None:
        """Note what answers for a row: its file in its runtime, or the torch module."""
        more: dict[str, Any] = {"source": row.source, "control": row.control}
        seed = self.shop.chosen.seed
        if product.file is not None:
            artefact = artefact or keeping.opened(self.shop, product.file)
            more |= {"artefacts": {seed: artefact}, "files": (product.file,)}
            found = Candidate(row.name, row.what, {seed: as_tensors(artefact.predict)}, artefact.runtime, **more)
        else:
            model = model_of(product, "measuring")
            predictors = {seed: torch_predictor(model, torch.device("cpu"))}
            found = Candidate(
                row.name, row.what, predictors, f"torch {torch.__version__}", models={seed: model}, **more
            )
        row.runtime = found.runtime
        self.candidates[row.name] = found
