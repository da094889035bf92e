"""Make a cache out of others, without the teacher: transcode, subset, merge, noise."""

from __future__ import annotations

from pipeline.caches.merge import MergeConfig
from pipeline.caches.merge import run as run_merge
from pipeline.caches.noise import NoiseConfig
from pipeline.caches.noise import run as run_noise
from pipeline.caches.subset import SubsetConfig
from pipeline.caches.subset import run as run_subset
from pipeline.caches.transcode import TranscodeConfig
from pipeline.caches.transcode import run as run_transcode
from stages.options import verb_command

transcode = verb_command(
    "transcode",
    TranscodeConfig,
    run_transcode,
    """Write the cache at CACHE (a directory or URL) again: dense labels as top-k, float16 or int8, zarr as Parquet or
    back, other part sizes. What the second encoding costs is measured, and declared on top of what the first one did.

    What is not there cannot come back: top-k labels become fewer classes, at temperatures that they hold.
    """,
    {"cache": "CACHE"},
)

subset = verb_command(
    "subset",
    SubsetConfig,
    run_subset,
    """Keep some of the cache at CACHE (a directory or URL) as a cache of its own, for that part of the data.""",
    {"cache": "CACHE"},
)

merge = verb_command(
    "merge",
    MergeConfig,
    run_merge,
    """Join CACHES that one teacher made. Their identities say how they belong together.

    \b
    the same identity               parts of one cache (dump --parts, cache pull --parts): that cache, byte for byte
    the same data, other --seed     their random views, one after another
    other examples                  the examples of the first, then what the others add
    """,
    {"caches": "CACHES..."},
)

noise = verb_command(
    "noise",
    NoiseConfig,
    run_noise,
    """Average the probabilities of CACHES, one cache for each teacher, add Gaussian noise, and say what may be claimed
    of the result: differential privacy of one training record where the teachers share none (--disjoint), else of all
    teachers as a whole. The examples themselves are taken to be public.

    Each row and view counts: keep what the student needs with `cache subset` first. Noise comes from the operating
    system and is kept nowhere, so a second making has other bytes and gives away more. --seed makes it repeatable, and
    voids the claim: whoever has the number takes the noise off.
    """,
    {"caches": "CACHES..."},
)
