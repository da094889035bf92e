"""Run a teacher once over every view and keep what it said.

A dump that was interrupted goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

from pipeline.dump import DumpConfig, run
from stages.options import stage_command

command = stage_command("dump", DumpConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.dump")
