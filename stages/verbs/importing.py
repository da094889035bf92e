"""Make a cache of labels that others have published."""

from __future__ import annotations

from pipeline.caches.importing import ImportConfig
from pipeline.importing import run
from stages.options import verb_command

command = verb_command(
    "import",
    ImportConfig,
    run,
    """Make a cache of labels that others have published at SOURCE: a file, a folder, or a glob of files in quotes.

    \b
    tinyvit         a folder with logits_topK_epochE in it; an epoch becomes a view
    fkd             a folder of NAME.tar for each image; a crop becomes a view
    npy             logits (N, C); --ids names the examples, --kind says what the numbers are
    npz             logits, logprobs or probs (N, C), ids; perhaps labels, split, class_names
    parquet         columns id, logits (lists); perhaps label, split, view, seed
    top-logprobs    JSON lines of a server's answers (vLLM, OpenAI); --data names the tokens that were sent
    distillkit      Parquet of DistillKit's compressed logits

    What the source cannot say, and you do not declare, is recorded as unknown.
    """,
    {"source": "SOURCE"},
)
