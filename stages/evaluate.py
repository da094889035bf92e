"""Measure a student on a split, and against its teacher."""

from __future__ import annotations

from pipeline.evaluation import EvaluateConfig, run
from stages.options import stage_command

command = stage_command("evaluate", EvaluateConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.evaluate")
