"""Language models on a GPU: what a dump adds to its teacher, the fused output layer, and a whole training step.

``--quick`` tries the plumbing on a CPU where there is no GPU; ``--only dump fused step`` runs some of the sections.
"""

from __future__ import annotations

from benchmarks import gpu_lm_dump, gpu_lm_fused, gpu_lm_step
from benchmarks.measure import Settings, Table
from benchmarks.sections import Sections, run_sections

SECTIONS: Sections = {
    "dump": gpu_lm_dump.measure,
    "bounds": gpu_lm_dump.bounds,
    "fused": gpu_lm_fused.measure,
    "step": gpu_lm_step.measure,
}


def run(settings: Settings) -> Table:
    """What was found on the GPU, or that there is none."""
    notes = [note for part in (gpu_lm_dump, gpu_lm_fused, gpu_lm_step) for note in part.NOTES]
    return run_sections("Language models on a GPU", SECTIONS, notes, settings)
