"""Look at caches, work on them, and share them."""

from __future__ import annotations

import click

from stages.lazy import LazyGroup
from stages.options import SETTINGS

COMMANDS = {
    "plan": ("stages.verbs.planning:command", "What a dump would cost and lose, by encoding."),
    "inspect": ("stages.verbs.inspecting:inspect", "What a cache is: teacher, data, views, encoding."),
    "verify": ("stages.verbs.verifying:verify", "Check every byte, and ask the teacher again."),
    "diff": ("stages.verbs.comparing:diff", "How two caches differ: identity, coverage, KL between them."),
    "card": ("stages.verbs.carding:card", "A card beside a cache: licence, contact, plots of what it holds."),
    "catalog": ("stages.verbs.cataloguing:catalog", "List the caches under folders or URLs, by identity."),
    "push": ("stages.verbs.transfer:push", "Send a cache to a URL, every byte checked."),
    "pull": ("stages.verbs.transfer:pull", "Fetch a cache, or parts of it, from a URL."),
    "refs": ("stages.verbs.references:refs", "Where DVC's remote holds each file, for readers without DVC."),
    "transcode": ("stages.verbs.rewriting:transcode", "The same labels in another encoding, store or part size."),
    "subset": ("stages.verbs.rewriting:subset", "Some examples, splits, views or features, as a cache of their own."),
    "merge": ("stages.verbs.rewriting:merge", "Parts, views or examples that several teams dumped, as one cache."),
    "noise": ("stages.verbs.rewriting:noise", "The mean of teachers' labels with noise, and what it gives away."),
    "extend": ("stages.verbs.extending:extend", "The dataset grew: only new examples meet the teacher."),
    "import": ("stages.verbs.importing:command", "Labels that others made: servers, DistillKit, TinyViT, FKD, tables."),
    "finalize": ("stages.verbs.finishing:finalize", "Finish a cache whose parts several processes made."),
    "gc": ("stages.verbs.finishing:gc", "List or remove what killed runs left behind."),
}


@click.group("cache", cls=LazyGroup, lazy=COMMANDS, help=__doc__, context_settings=SETTINGS)
def command() -> None: ...


if __name__ == "__main__":
    command(prog_name="python -m stages.cache")
