"""How a model is optimised: the options that every kind of training here shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.configuration import Config, option

OUTCOME_FREE = frozenset(
    {"out", "device", "workers", "threads", "resident", "resident_inputs", "checkpoint_every", "overwrite", "compile"}
    | {"parallel", "cache_dir", "cache_bytes", "fused_loss"}
)
"""Options that decide how a result is reached, not what it is: left out of its identity."""

ADDRESSES = frozenset({"cache", "labels", "route", "mix", "foreign", "classes", "weights"})
"""Options that say where something lies, how it is mixed, or which classes of the data. All count in the lineage."""

WHERE_GIVEN = frozenset({"checkpoints", "peers", "peer", "exchange", "peer_weight", "bare_topk", "alpha_epochs"})
"""Options that count where they have another value than their default: they came when there were runs without them."""


def outcome_options(config: Config) -> dict[str, Any]:
    """The options of a training run that decide its outcome, as JSON values."""
    options = config.as_dict()
    silent = WHERE_GIVEN - set(config.given(*(WHERE_GIVEN & set(options))))
    return {k: v for k, v in options.items() if k not in OUTCOME_FREE | ADDRESSES | silent}


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """Options of the training loop. Stages add their own; every field acts in ``fit``."""

    epochs: int = option(60, "passes over the training set")
    batch_size: int = option(64, "examples (or token sequences) per forward pass")
    accumulate: int = option(1, "batches per optimiser step: the effective batch is this times --batch-size")
    optimizer: str = option("adamw", "how weights are updated", choices=("adamw", "sgd"))
    lr: float = option(3e-3, "highest learning rate")
    weight_decay: float = option(0.01, "decoupled (adamw) or L2 (sgd); not on biases and norms")
    momentum: float = option(0.9, "of sgd")
    schedule: str = option("cosine", "of the learning rate over all steps", choices=("cosine", "onecycle", "constant"))
    warmup: float | None = option(
        None, "share of all steps, 0 to 1, over which the rate rises; 0.3 for onecycle, else 0"
    )
    patience: int = option(0, "stop after this many epochs without a better validation accuracy; 0 never stops early")
    keep: str = option(
        "last",
        "weights that are saved: those of the last epoch, or those best on validation (accuracy, then likelihood)",
        choices=("last", "best"),
    )
    precision: str = option("float32", "of the forward pass; weights stay float32", choices=("float32", "bfloat16"))
    compile: bool = option(False, "compile the model with torch.compile")
    fused_loss: bool = option(
        True,
        "of token sequences: the loss straight from hidden states, chunk by chunk, so that the logits of a batch are "
        "never held, where loss and model allow it",
    )
    window: int = option(8, "blocks of examples that are shuffled together")
    first_window: int = option(
        0,
        "blocks in the very first window of the run; later windows of epoch 0 double up to --window. 1 has the first "
        "batch of a cache at a URL after one part, and its first batches mix the examples of one part only; 0 is "
        "--window",
    )
    drop_last: bool = option(False, "leave out an epoch's last batch when it is short")
    resident_inputs: str = option(
        "auto",
        "where model inputs are kept: none reads and transforms them each epoch, ram and device read them once, "
        "auto takes device when they need less than 1 GiB",
        choices=("auto", "none", "ram", "device"),
    )
    workers: int = option(0, "processes that load examples when inputs are not kept; 0 does it in this one")
    threads: int = option(0, "CPU threads of torch; 0 leaves torch's choice, 1 is fastest for tiny models")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    checkpoint_every: float = option(60.0, "seconds between saved training states; 0 saves on interruption only")
    seed: int = option(0, "of initial weights, order and dropout")
    overwrite: bool = option(False, "replace another result at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(
            epochs=1,
            batch_size=1,
            accumulate=1,
            window=1,
            first_window=0,
            patience=0,
            workers=0,
            threads=0,
            weight_decay=0,
            momentum=0,
            checkpoint_every=0,
            seed=0,
        )
        if self.first_window > max(1, self.window):
            yield f"--first-window should be at most --window, {self.window}; found {self.first_window}"
        if not self.lr > 0:
            yield f"--lr should be above 0; found {self.lr}"
        if self.warmup is not None and not 0 <= self.warmup <= 1:
            yield f"--warmup is a share of all steps, 0 to 1; found {self.warmup}"
