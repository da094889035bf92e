"""A recipe with every kind of step, and quick options of ``compress``.

Most pruning steps are controls: these are trained and counted, and no file is exported of them, which takes long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.compression import CompressConfig
from tests.small_pipeline import SmallPipeline


def block(step: str, **options: Any) -> str:
    """One step as TOML."""
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in options.items()
    ]
    return "\n".join(["[[steps]]", f"step = '{step}'", *lines, ""])


def prune(name: str, **options: Any) -> str:
    """A control that prunes the student, down to single channels."""
    return block("prune", name=name, of="baseline", control=True, **{"multiple": 1, "epochs": 0, **options})


EVERY = "\n".join(
    [
        block("prune", ratio=0.5),
        block("finetune", epochs=1),
        block("scratch", of="pruned", epochs=0, control=True),
        block("quantise", of="pruned-finetuned"),
        block("prune", name="of-a-file"),
        block("quantise", name="of-nothing", method="dynamic"),
        block("quantise", of="pruned-finetuned", method="dynamic"),
        *(block("quantise", of="pruned", method="weights", bits=bits) for bits in (8, 4)),
        block("quantise", of="pruned", method="qat"),
        block("quantise", of="pruned", method="mixed", max_drop="5pt"),
        block("quantise", of="pruned", method="fp16"),
        block("quantise", of="pruned", method="bf16"),
        prune("to-macs", target_macs=0.5, labels="hard"),
        prune("like", like="to-macs"),
        prune("within", max_drop=0.99, trials=1),
        prune("scanned", ratio=0.3, sensitivity=True),
        prune("in-rounds", ratio=0.5, rounds=2, importance="taylor", epochs=2),
        prune("headless", what="heads"),
        block("prune", of="baseline", what="weights", ratio=0.75, control=True),
        block("finetune", of="sparse", epochs=2, control=True),
        block("prune", of="baseline", what="2:4", control=True),
        block("export", of="pruned", format="pt2"),
        block("export", name="opset-17", of="pruned", opset=17),
        block("export", of="pruned", format="executorch"),
        block("check", of="pruned", smaller=0.1, max_drop=1 - 1e-6),
    ]
)


def config(small: SmallPipeline, folder: Path, text: str, **options: Any) -> CompressConfig:
    """Quick options for a recipe that is written into ``folder``; ``folder``/out is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    quick: dict[str, Any] = {
        "runs": (small.soft,), "recipe": folder / "recipe.toml", "out": folder / "out", "epochs": 1, "controls": False,
        "latency_seconds": 0.001, "latency_batch": (1,), "device": "cpu", "threads": 1, "calibration": 16,
    }  # fmt: skip
    return CompressConfig(**{**quick, **options})
