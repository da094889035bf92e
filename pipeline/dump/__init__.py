"""Run the teacher once over every (example, view) and keep what it said.

The unit of work is a part. Batches never cross parts, a part is journalled once its files are on disk, and a run
that finds a scratch directory of its own identity goes on where the last one stopped. A second thread writes a part
while the teacher is at the next. Several processes may make the parts of one cache.

    config -> job -> claims -> parts -> run
"""

from pipeline.dump.config import DumpConfig, DumpReport, PartialReport
from pipeline.dump.job import Job, prepare
from pipeline.dump.run import finalize, run

__all__ = ["DumpConfig", "DumpReport", "Job", "PartialReport", "finalize", "prepare", "run"]
