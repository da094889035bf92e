"""The ``softlabels`` command: the stages in the order of the path of data, then the verbs about a cache.

Commands are imported when they are called, so that ``softlabels --help`` and ``softlabels cache inspect`` start
without torch.
"""

from __future__ import annotations

import importlib

import click

from stages.options import SETTINGS, named_errors, version

COMMANDS = {
    "fit-teacher": ("stages.fit_teacher", "Train a teacher on the hard labels of a dataset."),
    "dump": ("stages.dump", "Run a teacher once over every view and keep what it said."),
    "train": ("stages.train", "Train a student from a cache, or on hard labels."),
    "evaluate": ("stages.evaluate", "Measure a student on a split, and against its teacher."),
    "compress": ("stages.compress", "Prune, quantise and export a student, and run each result."),
    "report": ("stages.report", "Draw one page from what the other stages measured."),
    "cache": ("stages.cache", "Look at caches and share them: inspect, verify, push, pull, finalize, gc."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with named_errors():
            command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    "softlabels", cls=LazyGroup, context_settings=SETTINGS, epilog="Options of a command: softlabels COMMAND --help"
)
@click.version_option(version(), "--version", prog_name="softlabels", message="%(prog)s %(version)s")
def main() -> None:
    """Run the teacher once, keep what it said, train students from it.

    dataset -> views -> teacher -> cache -> student -> evaluate, compress, report
    """


if __name__ == "__main__":
    main(prog_name="softlabels")
