"""The options of ``softlabels train``, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.configuration import REQUIRED, option
from pipeline.losses import FEATURE_LOSSES, LOSSES
from pipeline.sources.cached import LABELS, RESIDENT
from pipeline.sources.matching import MISSING
from pipeline.sources.mixing import MIXES
from pipeline.sources.panel import APART, FOREIGN
from pipeline.store.copies import DEFAULT_BYTES
from pipeline.training.exchange import EXCHANGES
from pipeline.training.labels import parse_labels
from pipeline.training.ranks import PARALLEL
from pipeline.training.recipe import Recipe

DEFAULT_ALPHA = 0.9
OF_SOFT_LABELS = ("loss", "loss_args", "standardise", "bare_topk", "alpha_epochs")
"""Options that say how soft labels are learnt, and nothing where there are none."""
OF_HINTS = ("hint_loss", "hint_weight", "hint_epochs", "hints_in_turn")
"""Options that say how hints are learnt, and nothing where there are none."""
OF_PEERS = ("exchange", "peer_weight")
"""Options that say how peers learn from each other, and nothing where there are none."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Recipe):
    """What can be said about a training run; ``TrainConfig`` is what it comes to."""

    data: str = option(
        "digits",
        "dataset: digits, arrays:FILE.npz, images:FOLDER, tokens:FOLDER (of softlabels tokenize), module:factory, "
        "torchvision:NAME, hf:PATH, munge:BASE (synthetic examples made from BASE's)",
    )
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    cache: str | None = option(
        None, "cache of soft labels, a path or URL; without it (and --labels, --teacher) hard labels only"
    )
    labels: tuple[str, ...] = option(
        (), "instead of --cache: several, each with its weight (1 unless given)", metavar="CACHE=WEIGHT"
    )
    route: tuple[str, ...] = option(
        (),
        "instead of --cache: two caches or more, of a teacher's checkpoints in the order of its training (fit-teacher "
        "--checkpoints); each serves an equal share of the epochs",
        metavar="CACHE",
    )
    mix: str = option(
        "probs",
        "how several --labels become one: probs and logits average their probabilities at --temperature or their "
        "centred logits; confident takes for each example the surest; correct averages for each example the "
        "probabilities of those that have its hard label right, of all where none has; losses has a loss for each, "
        "which caches that know some of the classes need; heads has a loss for each too, of a head of its own",
        choices=(*MIXES, *APART),
    )
    foreign: str = option(
        "skip",
        "for caches that know some of the classes: what they say of examples whose hard label is none of theirs is "
        "left out, or learnt all the same",
        choices=FOREIGN,
    )
    cache_dir: Path | None = option(
        None, "for a --cache at a URL: folder that keeps copies of its parts  [default: softlabels/parts in ~/.cache]"
    )
    cache_bytes: int = option(DEFAULT_BYTES, "for a --cache at a URL: bytes of copies kept, the least recently used go")
    teacher: str | None = option(None, "instead of --cache: run this teacher beside the student")
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    weights: Path | None = option(None, "with --teacher: its weights, safetensors or a weights_only checkpoint")
    student: str = option(
        "mlp-16",
        "model: a built-in (cnn-WIDTH, resnet-WIDTH, mlp-WIDTH, gpt-WIDTH), module:factory, timm:NAME, hf:PATH",
    )
    student_args: tuple[str, ...] = option((), "key=value arguments for the student's factory")
    out: Path = option(REQUIRED, "directory of the run")
    seeds: int = option(1, "how many students to train, from --seed upwards")
    alpha: float | None = option(None, "weight of the soft labels; 0.9 with a cache or teacher, else 0")
    alpha_epochs: int = option(
        0,
        "first epochs (of labels) over which the weight of the soft labels rises linearly to alpha; 0 gives it whole "
        "from the start",
    )
    beta: float | None = option(None, "weight of the hard labels; 1 - alpha unless given")
    temperature: float = option(4.0, "of the soft labels; --loss logit-regression has none")
    loss: str = option(
        "kl", "of the soft labels; --list-methods says what each is and where it comes from", choices=tuple(LOSSES)
    )
    loss_args: tuple[str, ...] = option((), "key=value parameters of the loss, such as skew=0.1 or residual=even")
    standardise: bool = option(False, "z-scores in the place of the logits, the student's and the teacher's")
    bare_topk: bool = option(
        False,
        "top-k labels as others keep them: the kept classes renormalised, the dropped mass thrown away; to compare "
        "with",
    )
    label_smoothing: float = option(0.0, "share of each hard label that is spread evenly over all classes, below 1")
    hints: tuple[str, ...] = option(
        (),
        "feature of the teacher, as the cache names it (or module of a live --teacher), and the module of the student "
        "that learns to give it; several for several layers. With peers: a module of whoever teaches, and one of "
        "whoever learns; features are then those of the peers, never of the cache",
        metavar="FEATURE=MODULE",
    )
    hint_loss: str = option(
        "hint", "of the hints; --list-methods says what each is and where it comes from", choices=tuple(FEATURE_LOSSES)
    )
    hint_weight: float | None = option(
        None,
        "weight of the hints, summed over the layers; a value that suits --hint-loss unless given, a hundredth of it "
        "where mutual peers learn from each other",
    )
    hint_epochs: int = option(
        0, "first epochs, which learn hints alone; the others then learn labels alone. 0 learns both throughout"
    )
    hints_in_turn: bool = option(False, "layer by layer: each of several hints has its share of --hint-epochs")
    peers: int = option(0, "students of this kind that learn from each other at once, 2 or more; the first is kept")
    peer: tuple[str, ...] = option(
        (), "another model that learns beside the student, and is kept as a peer", metavar="REF"
    )
    exchange: str = option(
        "mutual",
        "how peers learn from each other, at --temperature: mutual from each other, ensemble from a gated mean of all "
        "their logits; online: the student alone, from each --peer as it learns from hard labels",
        choices=EXCHANGES,
    )
    peer_weight: float = option(1.0, "weight of what peers learn from each other")
    train_views: str = option("plain", "views to train on, one per epoch in turn: plain, random, all, or the first N")
    label_view: str = option("own", "soft labels of a view: its own, or those of the plain view", choices=LABELS)
    transform: str | None = option(None, "random view, where no cache says it, or where the cache's is module:factory")
    views: int = option(0, "without a cache: random views of each training example, besides the plain one")
    views_seed: int = option(0, "without a cache: seed of the views")
    labelled_fraction: float = option(1.0, "share of each class that keeps its hard labels, above 0 to 1, chosen by id")
    label_noise: float = option(0.0, "share of the training examples' hard labels that is wrong, chosen by id, below 1")
    omit_class: str | None = option(None, "class whose examples leave the training set (and the validation split)")
    missing: str = option(
        "error",
        "training examples that the cache lacks: stop, leave out, or keep for their hard labels",
        choices=MISSING,
    )
    repeat: int = option(0, "visits of each example per epoch; 0 makes an epoch about as long as the whole split")
    block: int = option(0, "examples per shuffled block; 0 takes the cache's parts, or 4096 without a cache")
    parallel: str = option(
        "ddp",
        "how ranks of torchrun share a student: ddp gives each all of it, fsdp a share of weights, gradients and "
        "optimiser state",
        choices=PARALLEL,
    )
    resident: str = option(
        "auto",
        "where soft labels are kept: none streams them, ram and device read them once; auto takes device when all "
        "views need less than 256 MiB",
        choices=RESIDENT,
    )

    @property
    def caches(self) -> tuple[tuple[str, float], ...]:
        """(path or URL, weight) of each cache that is learnt from; the weights come to 1."""
        if self.cache is not None:
            return ((self.cache, 1.0),)
        if self.route:
            return tuple((address, 1 / len(self.route)) for address in self.route)
        return parse_labels(self.labels)

    @property
    def cached(self) -> bool:
        """Whether there is any cache."""
        return self.cache is not None or bool(self.labels) or bool(self.route)

    @property
    def exchanging(self) -> bool:
        """Whether the student learns beside peers."""
        return bool(self.peers or self.peer)

    @property
    def alpha_beta(self) -> tuple[float, float]:
        """The weights of soft and hard labels, defaults filled in."""
        distilled = self.cached or self.teacher is not None
        alpha = (DEFAULT_ALPHA if distilled else 0.0) if self.alpha is None else self.alpha
        return alpha, 1.0 - alpha if self.beta is None else self.beta
