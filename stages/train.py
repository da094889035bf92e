"""Train a student from a cache, or on hard labels.

A run that was interrupted goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

from pipeline.training import TrainConfig, run
from pipeline.training.methods import table
from stages.options import listing_option, stage_command

LISTING = listing_option("--list-methods", table, "print the ways of training that have a name, and end")

command = stage_command("train", TrainConfig, run, __doc__, [LISTING])

if __name__ == "__main__":
    command(prog_name="python -m stages.train")
