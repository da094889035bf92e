"""``python -m benchmarks``: measure, print each table as it is ready, and keep a whole run in ``results/``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Settings, Table, document, machine, result_name

NAMES = (
    "reading",
    "writing",
    "steps",
    "sweeps",
    "peers",
    "dumping",
    "memory",
    "encodings",
    "distillkit",
    "fused_loss",
    "language",
    "lm_encodings",
    "remote",
    "gpu",
    "gpu_language",
)
RESULTS = Path(__file__).parent / "results"


def run_all(names: Sequence[str], *, quick: bool, scratch: Path, only: tuple[str, ...] = ()) -> list[Table]:
    """The tables of the benchmarks ``names``, each printed as it is ready; ``only`` some sections of them."""
    tables = []
    for name in names:
        folder = scratch / name
        folder.mkdir(parents=True)
        began = time.perf_counter()
        table: Table = importlib.import_module(f"benchmarks.{name}").run(Settings(folder, quick, only))
        print(table.markdown(), flush=True)
        print(f"({name}: {time.perf_counter() - began:.0f} s)\n", file=sys.stderr, flush=True)
        tables.append(table)
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it could measure, whether or not the aims were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run, of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the plumbing, the figures mean nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="of (gpu_)language or gpu: only these")
    parser.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/results for a whole run)")
    parser.add_argument("--scratch", type=Path, help="folder for what is written meanwhile, on the disk to be measured")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    names = [name for name in NAMES if name in given.names] or list(NAMES)
    described = machine()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="softlabels-bench-", dir=given.scratch) as scratch:
        tables = run_all(names, quick=given.quick, scratch=Path(scratch), only=tuple(given.only))
    whole = not given.names and not given.quick
    out = given.out or (RESULTS if whole else None)
    if out is not None:
        only = ["--only", *given.only] if given.only else []
        command = " ".join(["python -m benchmarks", *(["--quick"] if given.quick else []), *given.names, *only])
        out.mkdir(parents=True, exist_ok=True)
        path = out / result_name(described)
        path.write_text(document(described, tables, command, time.perf_counter() - began), encoding="utf-8")
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
