"""A click group whose commands live in modules of their own, imported when they are called.

``softlabels --help`` and ``softlabels cache inspect`` start without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from stages.options import named_errors


class LazyGroup(click.Group):
    """A group of ``commands``: name -> (module, first line of its help). The module's ``command`` is that command.

    ``module:attribute`` names another attribute, for a module with more than one command.
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        with named_errors():
            command = getattr(importlib.import_module(module), attribute or "command")
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])
