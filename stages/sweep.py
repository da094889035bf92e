"""Train students for every combination of some options, many at once.

Students that differ only in what they minimise (temperature, alpha, beta, loss) are trained together, from one pass
over the cached stream. Each is kept as a run of train, and equals that run up to rounding; with dropout, it draws other
masks. A sweep that was interrupted goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

from pipeline.training.grid import SweepConfig
from pipeline.training.sweep import run
from stages.options import stage_command

command = stage_command("sweep", SweepConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.sweep")
