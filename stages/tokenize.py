"""Turn text into token sequences that a teacher and its students share.

Without options: the sources of Python's standard library, with a vocabulary of 4,096 tokens learned from them, in
sequences of 256. Then `--data tokens:OUT`.
"""

from __future__ import annotations

from pipeline.tokenize import TokenizeConfig, run
from stages.options import stage_command

command = stage_command("tokenize", TokenizeConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.tokenize")
