"""Look at caches and share them: inspect, verify, push, pull, finalize, gc."""

from __future__ import annotations

import click

from stages.lazy import LazyGroup
from stages.options import SETTINGS

COMMANDS = {
    "inspect": ("stages.verbs.inspecting:inspect", "What a cache is: teacher, data, views, encoding."),
    "verify": ("stages.verbs.verifying:verify", "Check every byte, and ask the teacher again."),
    "push": ("stages.verbs.transfer:push", "Send a cache to a URL, every byte checked."),
    "pull": ("stages.verbs.transfer:pull", "Fetch a cache, or parts of it, from a URL."),
    "finalize": ("stages.verbs.finishing:finalize", "Finish a cache whose parts several processes made."),
    "gc": ("stages.verbs.finishing:gc", "List or remove what killed runs left behind."),
}


@click.group("cache", cls=LazyGroup, lazy=COMMANDS, help=__doc__, context_settings=SETTINGS)
def command() -> None: ...


if __name__ == "__main__":
    command(prog_name="python -m stages.cache")
