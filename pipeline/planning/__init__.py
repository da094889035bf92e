"""Before anything is spent: what a cache would cost and lose with each encoding, measured on a sample.

config -> sampling (the teacher) -> sizes, angles -> estimates -> choosing -> report

Of token sequences ``standing`` and ``parameters`` take the place of ``angles``.
"""

from pipeline.planning.choosing import choose
from pipeline.planning.config import PlanConfig
from pipeline.planning.estimates import Estimate
from pipeline.planning.report import PlanReport
from pipeline.planning.run import run

__all__ = ["Estimate", "PlanConfig", "PlanReport", "choose", "run"]
