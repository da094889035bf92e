"""What a stopped run finds again: the rows that are done, and the models of their steps, as files without code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefacts.opening import Artefact, open_artefact
from pipeline.compression.lineage import about, building
from pipeline.compression.recipe import BASELINE, TEACHER
from pipeline.compression.steps import Export, Step
from pipeline.compression.workshop import JOURNAL, Product, Workshop
from pipeline.evaluation.table import Row
from pipeline.identity import digest_bytes
from pipeline.models import save_weights
from pipeline.models.structure import structure_of, with_structure
from pipeline.models.weights import read_state

CONTROLS = "controls"
"""The folder of models that are there to compare with."""
KINDS = (".onnx", ".pt2", ".pte")
"""Files that compute."""


def read(journal: Path) -> dict[str, Any] | None:
    """One entry of the journal, None where the step is not done. Half an entry is none."""
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def save(shop: Workshop, product: Product | None, row: Row, steps: Sequence[Step]) -> dict[str, Any] | None:
    """Keep a product, and return what ``load`` needs to have it again. JSON values.

    A float model stays beside the artefacts as safetensors, that of a control in a folder of its own. That of an
    export, whose source has it already, goes with the journal.
    """
    if product is None:
        return None
    kept: dict[str, Any] = {"file": product.file and product.file.name, "sparse": product.sparse, "root": product.root}
    original = shop.original(product.root)
    if product.model is None or original is None or product.name in (BASELINE, TEACHER):
        return kept
    structure = structure_of(original, product.model)
    known = isinstance(steps[-1], Export)
    folder = f"{JOURNAL}/" if known else f"{CONTROLS}/" if row.control else ""
    place = f"{folder}{product.name}.safetensors"
    says = about(shop, product.root, steps).as_dict() | building(shop, product.root) | {"structure": structure}
    save_weights(shop.folder / place, product.model, says)
    row.weights = None if known else place
    return kept | {"model": place, "structure": structure}


def load(shop: Workshop, name: str, kept: Mapping[str, Any] | None) -> Product | None:
    """The product that ``save`` kept."""
    if kept is None:
        return None
    root = str(kept["root"])
    model = shop.original(root) if name in (BASELINE, TEACHER) else None
    if kept.get("model"):
        original = shop.original(root)
        assert original is not None
        state = read_state(shop.folder / kept["model"])
        model = with_structure(original, kept["structure"], state, shop.example)
    file = shop.folder / kept["file"] if kept.get("file") else None
    return Product(name, model, file, bool(kept["sparse"]), root)


def tidy(shop: Workshop, rows: Sequence[Row]) -> None:
    """Remove the journal, and files that no row names: nobody could open and try them."""
    named = {row.file for row in rows}
    for path in shop.folder.iterdir():
        if path.suffix in KINDS and path.name not in named:
            path.unlink()
    shutil.rmtree(shop.folder / JOURNAL)


def opened(shop: Workshop, path: Path) -> Artefact:
    """A file that this run made, open; made here, so trusted whatever its kind."""
    trusted = (digest_bytes(path.read_bytes()),) if path.suffix == ".pt2" else ()
    return open_artefact(path, threads=shop.config.runtime_threads, trusted=trusted)
