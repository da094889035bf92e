"""Peak memory of a dump and of a training run at ten times the rows, each in a fresh process.

``python -m benchmarks.memory STAGE FOLDER ROWS`` is such a process: it runs one stage and prints what it held.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Row, Settings, Table, peak_memory

CLASSES = 4000
"""Wide rows: at 1x already, the labels are more than all buffers of fixed size together."""
PART = 512
STAGES = ("dump", "train")
ROOT = Path(__file__).resolve().parent.parent


def run(settings: Settings) -> Table:
    """Peak memory at 1x and 10x the rows."""
    once = settings.pick(16_384, 512)
    found: list[Row] = []
    for stage in STAGES:
        small, large = (alone(stage, settings.scratch / str(rows), rows) for rows in (once, 10 * once))
        grown = large["peak"] / small["peak"]
        megabytes = ", ".join(f"{held['peak'] / 1e6:.0f} MB" for held in (small, large))
        found.append(
            Row(
                f"peak memory of {stage}, 10x / 1x the rows",
                f"{once:,} and {10 * once:,} x {CLASSES:,} float16",
                f"{grown:.3f}; {megabytes}, of which {small['start'] / 1e6:.0f} MB before the first line of work",
                "at most 1.1",
                grown <= 1.1,
            )
        )
    labels = 10 * once * CLASSES * 4 / 1e6
    return Table(
        "Memory",
        found,
        (
            f"Each figure is one fresh process (VmHWM). Parts of {PART} rows, windows of 8 parts; examples are made "
            "on the fly, and neither inputs nor labels are kept (`--resident-inputs none`, `--resident none`), so that "
            "what would grow is what the pipeline holds.",
            f"Keeping all labels of the larger run decoded would take {labels:,.0f} MB.",
        ),
    )


def alone(stage: str, folder: Path, rows: int) -> dict[str, int]:
    """Bytes held by a process of its own that runs ``stage``: ``start`` (imports) and ``peak``."""
    command = [sys.executable, "-m", "benchmarks.memory", stage, str(folder), str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(stage: str, folder: Path, rows: int) -> None:
    """Run one stage over ``rows`` rows and print what memory it took. ``train`` reads what ``dump`` left."""
    import torch

    from benchmarks.synthetic import dumped
    from pipeline import training

    torch.set_num_threads(1)
    start = peak_memory()
    if stage == "dump":
        dumped(folder / "cache", rows, classes=CLASSES, part_size=PART)
    else:
        training.run(
            training.TrainConfig(
                data="benchmarks.synthetic:Points",
                data_args=(f"rows={rows},classes={CLASSES}",),
                cache=str(folder / "cache"),
                student="benchmarks.synthetic:opinion",
                student_args=(f"classes={CLASSES}",),
                out=folder / "run",
                epochs=1,
                batch_size=256,
                resident="none",
                resident_inputs="none",
                device="cpu",
            )
        )
    print(json.dumps({"start": start, "peak": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
