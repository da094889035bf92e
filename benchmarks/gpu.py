"""On a GPU: dumping, training steps fed from a cache, encodings, and what float32 and torch.compile cost.

``--quick`` tries the plumbing on a CPU where there is no GPU. A section that fails, or is interrupted, leaves the rows
that it has found: a rented machine is not to be had twice.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import torch

from benchmarks import gpu_dumping, gpu_encodings, gpu_float32, gpu_steps
from benchmarks.measure import Row, Settings, Table

SECTIONS: dict[str, Callable[[Settings, torch.device], Iterator[Row]]] = {
    "encodings": gpu_encodings.measure,
    "steps": gpu_steps.measure,
    "dumping": gpu_dumping.measure,
    "float32": gpu_float32.measure,
    "compiled": gpu_steps.compiled,
}


def run(settings: Settings) -> Table:
    """What was found on the GPU, or that there is none."""
    cuda = torch.cuda.is_available()
    if not cuda and not settings.quick:
        return Table("GPU", [Row("all of it", "this machine", "skipped: torch finds no CUDA device (0 are there)")])
    device = torch.device("cuda" if cuda else "cpu")
    found: list[Row] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background would not hear of it
    for name, section in SECTIONS.items():
        began = time.perf_counter()
        try:
            for row in section(settings, device):
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
        print(f"(gpu {name}: {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
    about = torch.cuda.get_device_name(device) if cuda else "no GPU: a try of the plumbing on the CPU"
    notes = (note for part in (gpu_dumping, gpu_steps, gpu_encodings, gpu_float32) for note in part.NOTES)
    return Table("GPU", found, (f"On {about}.", *notes))
