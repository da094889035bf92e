"""Measure on a sample what a dump would cost and lose with each encoding. Nothing is written.

The teacher is asked about --sample entries, or positions of token sequences. The table gives, for dense labels and for
top-k with several k: bytes per label and of the whole cache (from the files that the store makes of the sample), KL to
the teacher at T = 1 and at --temperature, top-1 agreement, the angle between the gradients from all logits and from
what is kept, the expected time, and the number of epochs from which on the dump is cheaper than a live teacher. --json
says what each figure is.

Of token sequences, sampled labels of several numbers of draws are there, too, and the gradient is that of a student's
output matrix: how far it turns over the sample and over a step of training, and how its length changes. Noise averages
out over positions, a bias does not. One encoding is recommended.

--budget or --max-kl pick one and print the dump command; when none will do, the status is 1.
"""

from __future__ import annotations

import json
from typing import Any

import click

from pipeline.errors import EncodingError
from pipeline.planning import PlanConfig, run
from stages.options import SETTINGS, Command, options_from
from stages.progress import TerminalProgress


@click.command("plan", cls=Command, help=__doc__, context_settings=SETTINGS)
@options_from(PlanConfig)
def command(settings: Any, as_json: bool) -> None:
    report = run(settings, TerminalProgress())
    click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if as_json else f"{report.table}\n")
    if report.refused is not None:
        raise EncodingError(report.refused)
    if not as_json:
        click.echo(report.summary)
        if report.command is not None:
            click.echo(f"  {report.command}")
