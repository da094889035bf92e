"""What is wrong with the options of ``softlabels train``: a sentence for each problem, naming the option as typed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.configuration import parse_arguments
from pipeline.errors import ConfigError
from pipeline.losses import LOSSES
from pipeline.losses.meeting import EVEN
from pipeline.models import untrained
from pipeline.models.hydra import PREFIX
from pipeline.sources.mixing import OF_PROBABILITIES, check_weights
from pipeline.sources.panel import APART, HEADS
from pipeline.training.hints import parse_hints
from pipeline.training.labels import parse_labels
from pipeline.training.options import OF_HINTS, OF_PEERS, OF_SOFT_LABELS, TrainOptions

SPREAD = f"--loss-args residual={EVEN}"


def problems(config: TrainOptions) -> Iterator[str]:
    """All of them, but for those that every recipe can have."""
    yield from _of_labels(config)
    yield from _of_loss(config)
    yield from _of_hints(config)
    yield from mixture_problems(config)
    yield from _of_peers(config)
    yield from _of_route(config)
    yield from config.below(seeds=1, cache_bytes=0, hint_epochs=0, alpha_epochs=0)
    yield from _of_data(config)


def _of_data(config: TrainOptions) -> Iterator[str]:
    if not 0 < config.labelled_fraction <= 1:
        yield f"--labelled-fraction should be above 0 and at most 1; found {config.labelled_fraction}"
    if not 0 <= config.label_noise < 1:
        yield f"--label-noise should be 0 or more and below 1; found {config.label_noise}"
    if config.train_views not in ("plain", "random", "all") and not (
        config.train_views.isdecimal() and int(config.train_views)
    ):
        yield f"--train-views should be plain, random, all or a number from 1; found {config.train_views!r}"
    for name in ("repeat", "block", "views"):
        if getattr(config, name) < 0:
            yield f"--{name} should be 0 or more; found {getattr(config, name)}"
    if config.cached and config.views:
        yield "--views is for runs without a cache: with one, the views are those it was dumped with"
    if not config.cached and bool(config.views) != (config.transform is not None):
        yield "--views and --transform go together: how many random views, and how they are made"


def _of_loss(config: TrainOptions) -> Iterator[str]:
    even = False
    if config.loss in LOSSES:
        try:
            given = parse_arguments(config.loss_args, "--loss-args")
            yield from LOSSES[config.loss].problems(config.loss, given)
            even = config.loss == "kl" and given.get("residual") == EVEN
        except ConfigError as error:
            yield from error.problems
    if not 0 <= config.label_smoothing < 1:
        yield f"--label-smoothing should be 0 or more and below 1; found {config.label_smoothing}"
    if config.label_smoothing and config.alpha_beta[1] == 0:
        yield "--label-smoothing is of the hard labels, which weigh nothing: --alpha below 1, or --beta"
    if not config.cached and config.teacher is None:
        for flag in _given(config, *OF_SOFT_LABELS):
            yield f"{flag} is of soft labels, and there are none: name a --cache or a --teacher"
    elif config.alpha_epochs and config.alpha_beta[0] == 0:
        yield "--alpha-epochs is of soft labels, which weigh nothing: --alpha above 0"
    labelled = config.epochs - config.hint_epochs
    if config.alpha_epochs >= max(labelled, 1):
        of = f"--epochs {config.epochs}" + (f" after --hint-epochs {config.hint_epochs}" if config.hint_epochs else "")
        yield f"--alpha-epochs should leave some of {of} for the whole alpha; found {config.alpha_epochs}"
    if config.bare_topk:
        yield from _of_topk(config, "--bare-topk")
        yield from _of_bare_topk(config)
    if even:
        yield from _of_topk(config, SPREAD)
        if config.bare_topk:
            yield f"{SPREAD} spreads the residual that --bare-topk throws away: leave one out"


def _of_topk(config: TrainOptions, what: str) -> Iterator[str]:
    if config.teacher is not None:
        yield f"{what} is of top-k labels, and a --teacher gives those of all classes: use a --cache of them"
    if config.standardise:
        yield f"{what} is of top-k labels, and --standardise needs the logits of all classes: leave one out"
    if len(config.labels) > 1 and config.mix not in APART:
        yield f"{what} is of top-k labels, and --mix {config.mix} needs dense ones: use --mix losses"


def _of_bare_topk(config: TrainOptions) -> Iterator[str]:
    fitting = ", ".join(name for name, loss in LOSSES.items() if loss.bare)
    if config.loss in LOSSES and not LOSSES[config.loss].bare:
        why = "is infinite" if LOSSES[config.loss].topk else "is not defined"
        yield (
            f"--loss {config.loss} {why} where the teacher gives classes nothing, as with --bare-topk: use one of "
            f"{fitting}"
        )


def _of_hints(config: TrainOptions) -> Iterator[str]:
    if not config.hints:
        for flag in _given(config, *OF_HINTS):
            yield f"{flag} is of hints, and there are none: name some, --hints FEATURE=MODULE"
        return
    try:
        pairs = parse_hints(config.hints)
    except ConfigError as error:
        yield from error.problems
        return
    if config.cache is None and config.teacher is None and not config.exchanging:
        yield "--hints are features of one teacher: name its --cache (not several --labels), or that --teacher"
    if config.hint_weight is not None and not 0 < config.hint_weight < math.inf:
        yield f"--hint-weight should be above 0; found {config.hint_weight}"
    if config.hint_epochs >= config.epochs:
        yield f"--hint-epochs should leave some of --epochs {config.epochs} for the labels; found {config.hint_epochs}"
    if config.hints_in_turn and not len(pairs) <= config.hint_epochs:
        yield f"--hints-in-turn gives each hint epochs of its own: --hint-epochs of {len(pairs)} or more"
    if config.hints_in_turn and len(pairs) == 1:
        yield "--hints-in-turn is for several --hints"


def _of_peers(config: TrainOptions) -> Iterator[str]:
    if config.peers and config.peers < 2:
        yield f"--peers should be 2 or more students, or 0 for one that learns alone; found {config.peers}"
    if not config.exchanging:
        for flag in _given(config, *OF_PEERS):
            yield f"{flag} is of peers, and there are none: name some, --peers N or --peer REF"
        return
    whose = "--peers" if config.peers else "--peer"
    if not 0 < config.peer_weight < math.inf:
        yield f"--peer-weight should be above 0; found {config.peer_weight}"
    if config.exchange == "online" and config.peers:
        yield "--exchange online has one student, which learns from each --peer: leave out --peers"
    if config.exchange != "mutual" and config.alpha_beta[1] == 0:
        yield f"--exchange {config.exchange} needs a hard term: --alpha below 1, or --beta"
    if config.keep == "best" or config.patience:
        yield f"{whose}: of several students none is the one to choose by. Leave out --keep best and --patience"
    if config.parallel == "fsdp":
        yield f"--parallel fsdp shares the weights of a student alone: {whose} needs ddp"
    if config.compile:
        yield f"--compile is of a student alone: leave it out with {whose}"
    if config.hints and config.exchange == "ensemble":
        yield "--exchange ensemble has no --hints: an ensemble of logits has no features. Use mutual, or online"


def _of_labels(config: TrainOptions) -> Iterator[str]:
    alpha, beta = config.alpha_beta
    if config.cached and config.teacher is not None and not config.route:
        yield "give either --cache or --teacher: the labels come from one of them"
    if config.weights is not None and config.teacher is None:
        yield "--weights are the teacher's: they need --teacher"
    if config.weights is None and config.teacher is not None:
        yield from untrained(config.teacher, parse_arguments(config.teacher_args, "--teacher-args"))
    if not alpha >= 0:
        yield f"--alpha should be 0 or more; found {alpha}"
    if config.beta is None and alpha > 1:
        yield f"--alpha should be at most 1, or --beta given; found {alpha}"
    if alpha > 0 and not config.cached and config.teacher is None:
        yield f"--alpha {alpha:g} weighs soft labels, and there are none: name a --cache or a --teacher"
    if config.beta is not None and config.beta < 0:
        yield f"--beta should be 0 or more; found {config.beta}"
    if alpha == 0 and beta == 0:
        yield "--alpha and --beta are both 0: there is nothing to learn"
    if not config.temperature > 0:
        yield f"--temperature should be above 0; found {config.temperature}"
    if config.label_view == "plain" and not config.cached:
        yield "--label-view plain needs a --cache: a live teacher answers for the view it is shown"
    if not config.cached:
        for flag in _given(config, "missing", "resident", "cache_dir", "cache_bytes", "foreign"):
            yield f"{flag} is for runs with a --cache"
    if config.views_seed and not config.views:
        yield "--views-seed is for runs with --views"
    if config.missing == "hard" and beta == 0:
        yield "--missing hard needs a hard term: --alpha below 1, or --beta"


def _of_route(config: TrainOptions) -> Iterator[str]:
    if not config.route:
        return
    others = [f"--{name}" for name in ("cache", "labels", "teacher") if getattr(config, name)]
    if others:
        yield f"--route says which caches are learnt from, one after another: leave {', '.join(others)} out, or it"
    if len(config.route) == 1:
        yield "--route should name two caches or more, in order; one alone is --cache"
    if len(config.route) > config.epochs:
        yield f"--route of {len(config.route)} caches needs as many --epochs, at least; found {config.epochs}"


def mixture_problems(config: TrainOptions) -> Iterator[str]:
    """What is wrong with ``labels`` and ``mix``."""
    if config.cache is not None and config.labels and not config.route:
        yield "give either --cache or --labels: the cache as well with a weight, --labels CACHE=WEIGHT"
    try:
        weights = [weight for _, weight in parse_labels(config.labels)]
    except ConfigError as error:
        yield from error.problems
        return
    mixed = len(weights) > 1
    if config.mix != "probs" and not mixed:
        yield f"--mix {config.mix} is for two or more --labels: there are no several to make one of"
    if mixed:
        try:
            check_weights(config.mix, weights)
        except ConfigError as error:
            yield from (f"--mix {problem}" for problem in error.problems)
    if config.student.partition(":")[0] == PREFIX:
        yield f"--student {config.student}: heads are made by --mix heads, one for each of several --labels"
    if config.mix == HEADS and config.alpha_beta[0] == 0:
        yield "--mix heads needs soft labels, which weigh nothing: --alpha above 0"
    if config.mix == HEADS and config.exchanging:
        yield "--mix heads is of a student alone: leave out --peers and --peer"
    averaged = mixed and config.mix in OF_PROBABILITIES
    instead = "use --mix logits, confident or losses for several --labels"
    if averaged and config.standardise:
        yield f"--standardise is of logits, and --mix {config.mix} averages probabilities: {instead}"
    if averaged and config.loss in LOSSES and not LOSSES[config.loss].softened:
        yield (
            f"--loss {config.loss} has no temperature, and --mix {config.mix} averages probabilities at one: {instead}"
        )


def _given(config: TrainOptions, *names: str) -> Iterator[str]:
    """Those of the named options that do not have their default, as they are typed."""
    for name in config.given(*names):
        yield f"--{name.replace('_', '-')}"
