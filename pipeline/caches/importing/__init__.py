"""Labels that others have published, as a cache: TinyViT's and FKD's files, plain ``.npy``, ``.npz`` and Parquet.

    source        what every format yields
    tinyvit, fkd, plain (numpy_tables, parquet_tables)      the formats
    kept, full    top-k probabilities, or all classes, in stored form, and what their rounding leaves open
    pickled       arrays out of a pickle of which nothing is run
    sequences (served, vocabulary; distillkit, distillkit_config)     distributions at the positions of token sequences
    expected      the packing contract that they are held against
    logprobs      their top-k log-probabilities in stored form
    opening -> run

What a source cannot say is null in the identity, and named; nothing is invented (docs/importing.md).
"""

from __future__ import annotations

from pipeline.caches.importing.config import FORMATS, ImportConfig
from pipeline.caches.importing.run import Known, run

__all__ = ["FORMATS", "ImportConfig", "Known", "run"]
