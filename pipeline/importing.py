"""``softlabels cache import``: what published labels belong to is opened here, and the cache is made of it.

Labels of token sequences belong to a packing contract: the one whose sequences were sent to the teacher (--data), or
one that is made here of the answers (--tokens-out), with which the import then goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline import identity
from pipeline.caches.building import BuildReport
from pipeline.caches.importing import ImportConfig, Known
from pipeline.caches.importing import run as build
from pipeline.caches.importing.expected import Expected
from pipeline.caches.importing.opening import open_source
from pipeline.caches.importing.sequences import Sequences
from pipeline.caches.importing.vocabulary import Vocabulary
from pipeline.datasets import Tokens, load_dataset
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.records import Record, write_records
from pipeline.datasets.tokens.tokenizer import Tokenizer, open_tokenizer
from pipeline.errors import ConfigError, MissingDependencyError
from pipeline.identity import SPLITS
from pipeline.outputs import read_finished
from pipeline.progress import Bar, Progress, Silent
from pipeline.workspace import Workspace, refuse_strangers


def run(config: ImportConfig, progress: Progress | None = None) -> BuildReport:
    """Import, or resume, or find the same cache finished.

    Raises ConfigError for options that do not fit the source, DataError for a source that is not what it should be or
    that says something else than the contract, EncodingError naming the example that could not be kept, and as
    ``building.build`` does.
    """
    progress = progress or Silent()
    if config.data is not None:
        return build(config, progress, _known_by(_tokens(config.data), progress))
    if config.tokenizer is None:
        return build(config, progress)
    tokenizer = open_tokenizer(config.tokenizer, end=config.end_token, size=config.classes)
    vocabulary = Vocabulary.of(tokenizer.library)
    if config.tokens_out is None:
        return build(config, progress, Known(None, vocabulary, tokenizer.tokens, tokenizer.digest))
    _write_contract(config, config.tokens_out, tokenizer, vocabulary, progress)
    known = _known_by(_tokens(f"tokens:{config.tokens_out}"), progress)
    return build(config, progress, Known(known.expected, vocabulary, digest=tokenizer.digest))


def _tokens(reference: str) -> Tokens:
    data = load_dataset(reference)
    if not isinstance(data, Tokens):
        raise ConfigError(f"--data should be a packing contract, tokens:FOLDER; found {reference}")
    return data


def _known_by(data: Tokens, progress: Progress) -> Known:
    expected = Expected(
        name=data.name,
        digest=data.digest(progress),
        preprocessing=data.preprocessing,
        class_names=data.classes,
        ids=data.ids,
        splits=[SPLITS[split] for split in data.splits.tolist()],
        read=data.read,
    )
    try:
        own = open_tokenizer(str(data.contract.folder / layout.TOKENIZER), end=data.classes[data.end])
    except MissingDependencyError:
        return Known(expected)  # only answers that name tokens by their text need it
    return Known(expected, Vocabulary.of(own.library))


def _write_contract(
    config: ImportConfig, out: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, progress: Progress
) -> None:
    """Make a packing contract of all sequences of the source, or find it made."""
    form, source = open_source(config, None, None, vocabulary)
    try:
        if not isinstance(source, Sequences):
            raise ConfigError(f"--tokens-out is for formats of token sequences; {config.source} is {form}")
        files = source.scan(progress)
        made = {"tokenizer": tokenizer.digest, "end": tokenizer.end, "classes": len(tokenizer.tokens)}
        asked = {"format": layout.FORMAT, "version": layout.VERSION, **made, "records": form, "files": files}
        wanted = identity.digest({**asked, "split": config.split, "ids": config.id_template, "notes": source.notes()})
        if config.overwrite:
            refuse_strangers(out, (layout.CONTRACT, *layout.FILES))
        if read_finished(out, layout.CONTRACT, wanted, overwrite=config.overwrite) is not None:
            return
        with Workspace(out, wanted) as space, progress.bar("tokens", len(source.ids), "sequence") as bar:
            space.clear()
            records = (Record(scored.id, scored.token_ids, scored.positions) for scored in source.everything())
            write_records(space.path, _counted(records, bar), tokenizer, config.split, Path(config.source).name, wanted)
            space.commit()
    except ConfigError as error:
        raise ConfigError([problem.replace("--out ", "--tokens-out ", 1) for problem in error.problems]) from None
    finally:
        source.close()


def _counted(records: Iterable[Record], bar: Bar) -> Iterator[Record]:
    for record in records:
        yield record
        bar.update(1)
