"""Train a student from a cache, or on hard labels.

A run that was interrupted goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

from pipeline.training import TrainConfig, run
from stages.options import stage_command

command = stage_command("train", TrainConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.train")
