"""``softlabels tokenize``: survey the text, get a tokenizer, write the packing contract."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import identity
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.corpus import Corpus, Survey, documents_of, survey
from pipeline.datasets.tokens.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from pipeline.datasets.tokens.writing import write_contract
from pipeline.errors import DataError
from pipeline.identity import SPLITS
from pipeline.outputs import read_finished, write_beside
from pipeline.progress import Bar, Progress, Silent
from pipeline.references import optional
from pipeline.tokenize.config import TokenizeConfig, TokenizeReport
from pipeline.workspace import Workspace, refuse_strangers


def run(config: TokenizeConfig, progress: Progress | None = None) -> TokenizeReport:
    """Write the packing contract, or find it finished. A run that was stopped starts over.

    The files depend on text, options and the version of the ``tokenizers`` library alone. Times go to
    ``out``.report.json beside it.

    Raises ConfigError or DataError before any text is tokenized, MissingDependencyError without the library.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    optional("tokenizers", "lm", "softlabels tokenize")
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = open_tokenizer(config.tokenizer, end=config.end_token, size=config.pad_vocabulary)
    corpus, out = config.corpus, Path(config.out)
    found = survey(corpus, progress)
    made = {
        "tokenizer": {"trained": config.vocabulary} if tokenizer is None else tokenizer.digest,
        "end": None if tokenizer is None else tokenizer.end,
        "classes": None if tokenizer is None else len(tokenizer.tokens),
        "text": found.digest,
        "packing": config.how.as_dict(),
    }
    wanted = identity.digest({"format": layout.FORMAT, "version": layout.VERSION, **made})
    if config.overwrite:
        refuse_strangers(out, (layout.CONTRACT, *layout.FILES))
    if (record := read_finished(out, layout.CONTRACT, wanted, overwrite=config.overwrite)) is not None:
        report = TokenizeReport(str(config.out), record)
        write_beside(out, report.as_dict(), again=True)
        return report
    with Workspace(out, wanted) as space:
        space.clear()
        if tokenizer is None:
            tokenizer = _trained(corpus, found, config.vocabulary, progress)
        record = write_contract(space.path, corpus, found, tokenizer, config.how, wanted, progress)
        space.commit()
    report = TokenizeReport(str(config.out), record, round(time.perf_counter() - started, 3), _environment())
    write_beside(out, report.as_dict())
    return report


def _trained(corpus: Corpus, found: Survey, vocabulary: int, progress: Progress) -> Tokenizer:
    """A BPE of the training documents. Raises DataError when there are none."""
    train = SPLITS.index("train")
    if not found.count(train):
        raise DataError(
            f"--text {', '.join(corpus.sources)} has no training documents to learn a vocabulary from. Name a "
            "--tokenizer, or hold less out"
        )
    with progress.bar("learning a vocabulary", found.count(train), "document") as bar:
        return train_tokenizer(_texts(corpus, found, train, bar), vocabulary)


def _texts(corpus: Corpus, found: Survey, split: int, bar: Bar) -> Iterator[str]:
    for _, document in documents_of(corpus, found, split):
        if document.prompt:
            yield document.prompt
        yield document.text
        bar.update(1)


def _environment() -> dict[str, Any]:
    return {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")}
