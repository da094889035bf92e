"""Prune, quantise and export a student, and run each result."""

from __future__ import annotations

from pipeline.compression import CompressConfig, run
from stages.options import stage_command

command = stage_command("compress", CompressConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.compress")
