"""The ``softlabels`` command: the stages in the order of the path of data, then the verbs about a cache.

Commands are imported when they are called, so that ``softlabels --help`` and ``softlabels cache inspect`` start
without torch.
"""

from __future__ import annotations

import click

from stages.lazy import LazyGroup
from stages.options import SETTINGS, version

COMMANDS = {
    "tokenize": ("stages.tokenize", "Turn text into token sequences that a teacher and its students share."),
    "fit-teacher": ("stages.fit_teacher", "Train a teacher on the hard labels of a dataset."),
    "dump": ("stages.dump", "Run a teacher once over every view and keep what it said."),
    "train": ("stages.train", "Train a student from a cache, or on hard labels."),
    "sweep": ("stages.sweep", "Train students for every combination of some options, many at once."),
    "evaluate": ("stages.evaluate", "Measure students and artefacts on a split, and against their teacher."),
    "compare": ("stages.compare", "Hold one evaluation against another, and against what is claimed."),
    "compress": ("stages.compress", "Prune, quantise and export a student, and run each result."),
    "report": ("stages.report", "Draw one page from what the other stages measured."),
    "cache": ("stages.cache", "Look at caches, work on them, and share them."),
}


@click.group(
    "softlabels",
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings=SETTINGS,
    epilog="Options of a command: softlabels COMMAND --help",
)
@click.version_option(version(), "--version", prog_name="softlabels", message="%(prog)s %(version)s")
def main() -> None:
    """Run the teacher once, keep what it said, train students from it.

    dataset -> views -> teacher -> cache -> student -> evaluate, compress, report
    """


if __name__ == "__main__":
    main(prog_name="softlabels")
