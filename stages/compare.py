"""Hold one evaluation against another, and against what is claimed.

FIRST and SECOND are directories of softlabels evaluate, of the same examples. Prints their difference and how far
chance alone reaches: seeds are paired, and test examples where the figure is an accuracy. --expect has it say whether
what someone claims was seen.
"""

from __future__ import annotations

from pipeline.evaluation.comparing import CompareConfig, run
from stages.options import verb_command

command = verb_command("compare", CompareConfig, run, __doc__, {"first": "FIRST", "second": "SECOND"})

if __name__ == "__main__":
    command(prog_name="python -m stages.compare")
