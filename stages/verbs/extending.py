"""Add new examples to a cache: the one verb of its kind that needs the teacher."""

from __future__ import annotations

from pipeline.dump.extend import ExtendConfig, run
from stages.options import verb_command

extend = verb_command(
    "extend",
    ExtendConfig,
    run,
    """Make a cache of a dataset that has grown since CACHE (a directory or URL) was dumped.

    The labels that are there are copied; only new examples meet the teacher, in the views, the encoding and the
    precision of the cache. Examples that the dataset has no more are left out; changed ones are refused.
    """,
    {"cache": "CACHE"},
)
