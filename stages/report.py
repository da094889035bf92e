"""Draw one page from what the other stages measured."""

from __future__ import annotations

from pipeline.report import ReportConfig, run
from stages.options import stage_command

command = stage_command("report", ReportConfig, run, __doc__)

if __name__ == "__main__":
    command(prog_name="python -m stages.report")
