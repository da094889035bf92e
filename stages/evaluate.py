"""Measure students and artefacts on a split, and against their teacher.

MODELS are directories of train (all seeds), fit-teacher or compress (all files), and files: .safetensors, .onnx, .pt2.
They are measured side by side, in one table; NAME=PATH names a row. --run alone writes what a report of methods reads.
"""

from __future__ import annotations

from pipeline.corruptions import catalogue
from pipeline.evaluation import EvaluateConfig, run
from stages.options import listing_option, stage_command

LISTING = listing_option("--list-corruptions", catalogue, "print the corruptions that there are, and end")

command = stage_command("evaluate", EvaluateConfig, run, __doc__, [LISTING], {"models": "[MODELS]..."})

if __name__ == "__main__":
    command(prog_name="python -m stages.evaluate")
