"""Run the teacher once over every (example, view) and keep what it said.

The unit of work is a part. Batches never cross parts, a part is journalled once its files are on disk, and a run
that finds a scratch directory of its own identity goes on where the last one stopped. Encoding and writing happen in
a second thread while the teacher computes.
"""

from pipeline.dump.config import DumpConfig, DumpReport
from pipeline.dump.job import Job, prepare
from pipeline.dump.run import run

__all__ = ["DumpConfig", "DumpReport", "Job", "prepare", "run"]
