"""Text to token sequences, once: the packing contract that teacher and students share."""

from pipeline.tokenize.config import TokenizeConfig, TokenizeReport
from pipeline.tokenize.run import run

__all__ = ["TokenizeConfig", "TokenizeReport", "run"]
