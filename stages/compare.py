"""Hold one evaluation against another: their difference, and how far chance alone reaches.

Seeds are paired, and test examples where the figure is an accuracy. With --expect, say whether what is claimed was
seen.
"""

from __future__ import annotations

from pipeline.evaluation.comparing import CompareConfig, run
from stages.options import verb_command

command = verb_command("compare", CompareConfig, run, __doc__, {"first": "FIRST", "second": "SECOND"})

if __name__ == "__main__":
    command(prog_name="python -m stages.compare")
