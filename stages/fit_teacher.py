"""Train a teacher on the hard labels of a dataset.

People with a teacher of their own skip this and name its weights: softlabels dump --teacher ... --weights ...
"""

from __future__ import annotations

from pipeline.teacher import FitTeacherConfig, run
from stages.options import stage_command

command = stage_command("fit-teacher", FitTeacherConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.fit_teacher")
