"""A benchmark in sections, each of which may fail alone: a rented machine is not to be had twice.

A section that fails, or is interrupted, leaves the rows that it has found, and the next one begins.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch

from benchmarks.measure import Row, Settings, Table

Sections: TypeAlias = Mapping[str, Callable[[Settings, torch.device], Iterator[Row]]]


def run_sections(title: str, sections: Sections, notes: Sequence[str], settings: Settings) -> Table:
    """What was found on the GPU, or that there is none; ``quick`` tries the plumbing on a CPU where there is none.

    Raises ValueError when ``settings.only`` names a section that is not there.
    """
    chosen = settings.chosen(sections)
    cuda = torch.cuda.is_available()
    if not cuda and not settings.quick:
        return Table(title, [Row("all of it", "this machine", "skipped: torch finds no CUDA device (0 are there)")])
    device = torch.device("cuda" if cuda else "cpu")
    found: list[Row] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background would not hear of it
    for name in chosen:
        began = time.perf_counter()
        try:
            for row in sections[name](settings, device):
                found.append(row)
                print(f"{row.what} | {row.on} | {row.measured}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            found.append(Row(name, "the rest of it", f"interrupted after {time.perf_counter() - began:.0f} s"))
            break
        except Exception as error:
            if settings.quick:
                raise
            traceback.print_exc()
            found.append(Row(name, "the rest of it", f"failed with 1 {type(error).__name__}: {str(error)[:200]}"))
        if cuda:
            torch.cuda.empty_cache()
        print(f"(gpu {name}: {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
    about = torch.cuda.get_device_name(device) if cuda else "no GPU: a try of the plumbing on the CPU"
    return Table(title, found, (f"On {about}.", *notes))
