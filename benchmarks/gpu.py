"""On a GPU: dumping, training steps fed from a cache, encodings, and what float32 and torch.compile cost.

``--quick`` tries the plumbing on a CPU where there is no GPU; ``--only`` runs some of the sections.
"""

from __future__ import annotations

from benchmarks import gpu_dumping, gpu_encodings, gpu_float32, gpu_steps
from benchmarks.measure import Settings, Table
from benchmarks.sections import Sections, run_sections

SECTIONS: Sections = {
    "encodings": gpu_encodings.measure,
    "steps": gpu_steps.measure,
    "dumping": gpu_dumping.measure,
    "float32": gpu_float32.measure,
    "compiled": gpu_steps.compiled,
}


def run(settings: Settings) -> Table:
    """What was found on the GPU, or that there is none."""
    notes = [note for part in (gpu_dumping, gpu_steps, gpu_encodings, gpu_float32) for note in part.NOTES]
    return run_sections("GPU", SECTIONS, notes, settings)
