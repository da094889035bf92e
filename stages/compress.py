"""Prune, quantise and export a student, and run each result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from pipeline.compression import CompressConfig, default_recipe, run
from pipeline.compression.recipe import Recipe, read_recipe
from pipeline.errors import ConfigError
from pipeline.progress import Progress
from stages.options import Report, stage_command

SHOWN = "softlabels.show-recipe"


@dataclass(frozen=True)
class Shown:
    """The recipe that options stand for, in place of a report."""

    recipe: Recipe

    @property
    def summary(self) -> str:
        """The TOML that --recipe takes."""
        return self.recipe.toml().rstrip() or "# no steps: the student is exported as it is"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"steps": self.recipe.as_dict()}


def _show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[SHOWN] = True
        # Nothing is read or written, so that nothing has to be named.
        ctx.default_map = {"runs": ["."], "out": "."} | dict(ctx.default_map or {})


def _run(config: CompressConfig, progress: Progress) -> Report:
    if not click.get_current_context().meta.get(SHOWN):
        return run(config, progress)
    if config.search:
        raise ConfigError("--search makes recipes as it goes, and leaves them in its --out: leave out --show-recipe")
    return Shown(default_recipe(config) if config.recipe is None else read_recipe(config.recipe))


SHOW = click.Option(
    ["--show-recipe"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show,
    help="print the recipe that the other options stand for, as TOML for --recipe, and end",
)

command = stage_command("compress", CompressConfig, _run, __doc__, [SHOW])

if __name__ == "__main__":
    command(prog_name="python -m stages.compress")
