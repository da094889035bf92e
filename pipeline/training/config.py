"""The options of ``softlabels train``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, option, parse_arguments
from pipeline.errors import ConfigError
from pipeline.losses import FEATURE_LOSSES, LOSSES
from pipeline.models import untrained
from pipeline.models.hydra import PREFIX
from pipeline.sources.cached import LABELS, RESIDENT
from pipeline.sources.matching import MISSING
from pipeline.sources.mixing import MIXES, OF_PROBABILITIES, check_weights
from pipeline.sources.panel import APART, FOREIGN, HEADS
from pipeline.store.copies import DEFAULT_BYTES
from pipeline.training.exchange import EXCHANGES, Exchange
from pipeline.training.heads import HeadsObjective
from pipeline.training.hints import Hints, parse_hints
from pipeline.training.labels import parse_labels
from pipeline.training.objective import Goal, Objective
from pipeline.training.ranks import PARALLEL
from pipeline.training.recipe import Recipe

DEFAULT_ALPHA = 0.9
DEFAULT_BLOCK = 4096
OF_SOFT_LABELS = ("loss", "loss_args", "standardise", "bare_topk", "alpha_epochs")
"""Options that say how soft labels are learnt, and nothing where there are none."""
OF_HINTS = ("hint_loss", "hint_weight", "hint_epochs", "hints_in_turn")
"""Options that say how hints are learnt, and nothing where there are none."""
OF_PEERS = ("exchange", "peer_weight")
"""Options that say how peers learn from each other, and nothing where there are none."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """A student, what it learns from, and how.

    Which examples count: every training example that has something to learn from, soft labels or a hard label. Without
    soft labels (alpha 0, or neither cache nor teacher) those are the examples that keep their hard label under
    ``labelled_fraction``; an epoch then visits them as often as makes it as long as one over the whole split
    (``repeat``), so that methods are compared at equal numbers of steps.
    """

    data: str = option(
        "digits",
        "dataset: digits, arrays:FILE.npz, images:FOLDER, module:factory, torchvision:NAME, hf:PATH, munge:BASE "
        "(synthetic examples made from BASE's)",
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
    student: str = option("mlp-16", "model: a built-in (cnn-WIDTH, mlp-WIDTH), module:factory, timm:NAME, hf:PATH")
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
    loss_args: tuple[str, ...] = option((), "key=value parameters of the loss, such as skew=0.1")
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
        None, "weight of the hints, summed over the layers; a value that suits --hint-loss unless given"
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

    def __post_init__(self) -> None:
        if self.cache is None and len(self.labels) == 1 and not list(self._mixture_problems()):
            # A mixture of one is that one: the same run, with the same record.
            object.__setattr__(self, "cache", self.caches[0][0])
            object.__setattr__(self, "labels", ())
        super().__post_init__()

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
    def _weights(self) -> tuple[float, float]:
        """alpha and beta, defaults filled in."""
        distilled = self.cached or self.teacher is not None
        alpha = (DEFAULT_ALPHA if distilled else 0.0) if self.alpha is None else self.alpha
        return alpha, 1.0 - alpha if self.beta is None else self.beta

    @property
    def objective(self) -> Objective:
        """Weights, temperature and loss, defaults filled in."""
        alpha, beta = self._weights
        parameters = parse_arguments(self.loss_args, "--loss-args")
        return Objective(
            alpha=alpha,
            beta=beta,
            temperature=self.temperature,
            loss=self.loss,
            parameters=tuple((name, float(value)) for name, value in sorted(parameters.items())),
            standardise=self.standardise,
            smoothing=self.label_smoothing,
            hints=None if self.exchanging else self._hints,  # the features of peers are no teacher's
            bare=self.bare_topk,
            rising=self.alpha_epochs,
        )

    @property
    def exchanging(self) -> bool:
        """Whether the student learns beside peers."""
        return bool(self.peers or self.peer)

    @property
    def goal(self) -> Goal:
        """What ``fit`` minimises: the objective, or what heads or peers make of it."""
        if self.mix == HEADS:
            return HeadsObjective(**vars(self.objective))
        if self.exchanging:
            return Exchange(self.objective, self.exchange, self.peer_weight, self._hints)
        return self.objective

    @property
    def model(self) -> tuple[str, dict[str, Any]]:
        """The student's reference and arguments, as ``build_model`` takes them."""
        arguments = parse_arguments(self.student_args, "--student-args")
        if self.mix == HEADS:
            return f"{PREFIX}:{self.student}", {**arguments, "heads": len(self.labels)}
        return self.student, arguments

    @property
    def _hints(self) -> Hints | None:
        """What is learnt from features, defaults filled in."""
        if not self.hints:
            return None
        weight = FEATURE_LOSSES[self.hint_loss].weight if self.hint_weight is None else self.hint_weight
        return Hints(parse_hints(self.hints), self.hint_loss, weight, self.hint_epochs, self.hints_in_turn)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self._label_problems()
        yield from self._loss_problems()
        yield from self._hint_problems()
        yield from self._mixture_problems()
        yield from self._peer_problems()
        yield from self._route_problems()
        yield from self.below(seeds=1, cache_bytes=0, hint_epochs=0, alpha_epochs=0)
        if not 0 < self.labelled_fraction <= 1:
            yield f"--labelled-fraction should be above 0 and at most 1; found {self.labelled_fraction}"
        if not 0 <= self.label_noise < 1:
            yield f"--label-noise should be 0 or more and below 1; found {self.label_noise}"
        if self.train_views not in ("plain", "random", "all") and not (
            self.train_views.isdecimal() and int(self.train_views)
        ):
            yield f"--train-views should be plain, random, all or a number from 1; found {self.train_views!r}"
        for name in ("repeat", "block", "views"):
            if getattr(self, name) < 0:
                yield f"--{name} should be 0 or more; found {getattr(self, name)}"
        if self.cached and self.views:
            yield "--views is for runs without a cache: with one, the views are those it was dumped with"
        if not self.cached and bool(self.views) != (self.transform is not None):
            yield "--views and --transform go together: how many random views, and how they are made"

    def _loss_problems(self) -> Iterator[str]:
        if self.loss in LOSSES:
            try:
                yield from LOSSES[self.loss].problems(self.loss, parse_arguments(self.loss_args, "--loss-args"))
            except ConfigError as error:
                yield from error.problems
        if not 0 <= self.label_smoothing < 1:
            yield f"--label-smoothing should be 0 or more and below 1; found {self.label_smoothing}"
        if self.label_smoothing and self._weights[1] == 0:
            yield "--label-smoothing is of the hard labels, which weigh nothing: --alpha below 1, or --beta"
        if not self.cached and self.teacher is None:
            for flag in self._given(*OF_SOFT_LABELS):
                yield f"{flag} is of soft labels, and there are none: name a --cache or a --teacher"
        elif self.alpha_epochs and self._weights[0] == 0:
            yield "--alpha-epochs is of soft labels, which weigh nothing: --alpha above 0"
        labelled = self.epochs - self.hint_epochs
        if self.alpha_epochs >= max(labelled, 1):
            of = f"--epochs {self.epochs}" + (f" after --hint-epochs {self.hint_epochs}" if self.hint_epochs else "")
            yield f"--alpha-epochs should leave some of {of} for the whole alpha; found {self.alpha_epochs}"

        if self.bare_topk:
            yield from self._bare_problems()

    def _bare_problems(self) -> Iterator[str]:
        fitting = ", ".join(name for name, loss in LOSSES.items() if loss.bare)
        if self.teacher is not None:
            yield "--bare-topk is of top-k labels, and a --teacher gives those of all classes: use a --cache of them"
        if self.standardise:
            yield "--bare-topk is of top-k labels, and --standardise needs the logits of all classes: leave one out"
        if len(self.labels) > 1 and self.mix not in APART:
            yield f"--bare-topk is of top-k labels, and --mix {self.mix} needs dense ones: use --mix losses"
        if self.loss in LOSSES and not LOSSES[self.loss].bare:
            why = "is infinite" if LOSSES[self.loss].topk else "is not defined"
            yield (
                f"--loss {self.loss} {why} where the teacher gives classes nothing, as with --bare-topk: use one of "
                f"{fitting}"
            )

    def _hint_problems(self) -> Iterator[str]:
        if not self.hints:
            for flag in self._given(*OF_HINTS):
                yield f"{flag} is of hints, and there are none: name some, --hints FEATURE=MODULE"
            return
        try:
            pairs = parse_hints(self.hints)
        except ConfigError as error:
            yield from error.problems
            return
        if self.cache is None and self.teacher is None and not self.exchanging:
            yield "--hints are features of one teacher: name its --cache (not several --labels), or that --teacher"
        if self.hint_weight is not None and not 0 < self.hint_weight < math.inf:
            yield f"--hint-weight should be above 0; found {self.hint_weight}"
        if self.hint_epochs >= self.epochs:
            yield f"--hint-epochs should leave some of --epochs {self.epochs} for the labels; found {self.hint_epochs}"
        if self.hints_in_turn and not len(pairs) <= self.hint_epochs:
            yield f"--hints-in-turn gives each hint epochs of its own: --hint-epochs of {len(pairs)} or more"
        if self.hints_in_turn and len(pairs) == 1:
            yield "--hints-in-turn is for several --hints"

    def _peer_problems(self) -> Iterator[str]:
        if self.peers and self.peers < 2:
            yield f"--peers should be 2 or more students, or 0 for one that learns alone; found {self.peers}"
        if not self.exchanging:
            for flag in self._given(*OF_PEERS):
                yield f"{flag} is of peers, and there are none: name some, --peers N or --peer REF"
            return
        whose = "--peers" if self.peers else "--peer"
        if not 0 < self.peer_weight < math.inf:
            yield f"--peer-weight should be above 0; found {self.peer_weight}"
        if self.exchange == "online" and self.peers:
            yield "--exchange online has one student, which learns from each --peer: leave out --peers"
        if self.exchange != "mutual" and self._weights[1] == 0:
            yield f"--exchange {self.exchange} needs a hard term: --alpha below 1, or --beta"
        if self.keep == "best" or self.patience:
            yield f"{whose}: of several students none is the one to choose by. Leave out --keep best and --patience"
        if self.parallel == "fsdp":
            yield f"--parallel fsdp shares the weights of a student alone: {whose} needs ddp"
        if self.compile:
            yield f"--compile is of a student alone: leave it out with {whose}"
        if self.hints and self.exchange == "ensemble":
            yield "--exchange ensemble has no --hints: an ensemble of logits has no features. Use mutual, or online"

    def _label_problems(self) -> Iterator[str]:
        alpha, beta = self._weights
        if self.cached and self.teacher is not None and not self.route:
            yield "give either --cache or --teacher: the labels come from one of them"
        if self.weights is not None and self.teacher is None:
            yield "--weights are the teacher's: they need --teacher"
        if self.weights is None and self.teacher is not None:
            yield from untrained(self.teacher, parse_arguments(self.teacher_args, "--teacher-args"))
        if not alpha >= 0:
            yield f"--alpha should be 0 or more; found {alpha}"
        if self.beta is None and alpha > 1:
            yield f"--alpha should be at most 1, or --beta given; found {alpha}"
        if alpha > 0 and not self.cached and self.teacher is None:
            yield f"--alpha {alpha:g} weighs soft labels, and there are none: name a --cache or a --teacher"
        if self.beta is not None and self.beta < 0:
            yield f"--beta should be 0 or more; found {self.beta}"
        if alpha == 0 and beta == 0:
            yield "--alpha and --beta are both 0: there is nothing to learn"
        if not self.temperature > 0:
            yield f"--temperature should be above 0; found {self.temperature}"
        if self.label_view == "plain" and not self.cached:
            yield "--label-view plain needs a --cache: a live teacher answers for the view it is shown"
        if not self.cached:
            for flag in self._given("missing", "resident", "cache_dir", "cache_bytes", "foreign"):
                yield f"{flag} is for runs with a --cache"
        if self.views_seed and not self.views:
            yield "--views-seed is for runs with --views"
        if self.missing == "hard" and beta == 0:
            yield "--missing hard needs a hard term: --alpha below 1, or --beta"

    def _given(self, *names: str) -> Iterator[str]:
        """Those of the named options that do not have their default, as they are typed."""
        for name in self.given(*names):
            yield f"--{name.replace('_', '-')}"

    def _route_problems(self) -> Iterator[str]:
        if not self.route:
            return
        others = [f"--{name}" for name in ("cache", "labels", "teacher") if getattr(self, name)]
        if others:
            yield f"--route says which caches are learnt from, one after another: leave {', '.join(others)} out, or it"
        if len(self.route) == 1:
            yield "--route should name two caches or more, in order; one alone is --cache"
        if len(self.route) > self.epochs:
            yield f"--route of {len(self.route)} caches needs as many --epochs, at least; found {self.epochs}"

    def _mixture_problems(self) -> Iterator[str]:
        if self.cache is not None and self.labels and not self.route:
            yield "give either --cache or --labels: the cache as well with a weight, --labels CACHE=WEIGHT"
        try:
            weights = [weight for _, weight in parse_labels(self.labels)]
        except ConfigError as error:
            yield from error.problems
            return
        mixed = len(weights) > 1
        if self.mix != "probs" and not mixed:
            yield f"--mix {self.mix} is for two or more --labels: there are no several to make one of"
        if mixed:
            try:
                check_weights(self.mix, weights)
            except ConfigError as error:
                yield from (f"--mix {problem}" for problem in error.problems)
        if self.student.partition(":")[0] == PREFIX:
            yield f"--student {self.student}: heads are made by --mix heads, one for each of several --labels"
        if self.mix == HEADS and self._weights[0] == 0:
            yield "--mix heads needs soft labels, which weigh nothing: --alpha above 0"
        if self.mix == HEADS and self.exchanging:
            yield "--mix heads is of a student alone: leave out --peers and --peer"
        averaged = mixed and self.mix in OF_PROBABILITIES
        instead = "use --mix logits, confident or losses for several --labels"
        if averaged and self.standardise:
            yield f"--standardise is of logits, and --mix {self.mix} averages probabilities: {instead}"
        if averaged and self.loss in LOSSES and not LOSSES[self.loss].softened:
            yield (
                f"--loss {self.loss} has no temperature, and --mix {self.mix} averages probabilities at one: {instead}"
            )
