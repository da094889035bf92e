"""The ways of training that have a name: what switches each on, which labels it needs, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.losses import FEATURE_LOSSES, LOSSES, ResponseLoss
from pipeline.losses.meeting import EVEN

DENSE, TOPK, ANY, HARD = "dense", "top-k", "dense, top-k", "none"
SPARSE = "dense, top-k, sampled"
EITHER = "none, or any"


@dataclass(frozen=True)
class Method:
    """``options`` of ``softlabels train`` that make the method; ``labels``: the encodings it can be trained from."""

    family: str
    name: str
    options: str
    labels: str
    source: str


def methods() -> tuple[Method, ...]:
    """Every named method, family by family."""
    return (*_responses(), *_features(), *_BASELINES, *_SEVERAL, *_HEADS, *_CHAINS, *_TOGETHER, *_DATA)


def table() -> str:
    """The methods as text for people, a line each, under the names of their families."""
    rows = methods()
    name, options, labels = (max(len(getattr(m, key)) for m in rows) + 2 for key in ("name", "options", "labels"))
    lines: list[str] = []
    head = f"  {'':{name}}{'softlabels train ...':{options}}{'soft labels':{labels}}source"
    for family in dict.fromkeys(row.family for row in rows):
        lines += ["", f"{family}:"]
        own = (row for row in rows if row.family == family)
        lines += [f"  {row.name:{name}}{row.options:{options}}{row.labels:{labels}}{row.source}" for row in own]
    return "\n".join([head, *lines])


def _responses() -> Iterator[Method]:
    for name, loss in LOSSES.items():
        yield Method("response", loss.what, _switch(name, loss), _served(loss), loss.source)
    yield Method("response", "logit standardisation, with any loss", "--standardise", DENSE, "Sun et al. 2024")
    yield Method(
        "response",
        "KL, the residual spread evenly",
        f"--loss kl --loss-args residual={EVEN}",
        TOPK,
        "measured in docs/decisions/0014",
    )
    yield Method(
        "response",
        "kept classes renormalised, to compare with",
        "--bare-topk",
        TOPK,
        "as others keep them; measured by Anshumann et al. 2025",
    )
    yield Method(
        "response", "a weight that rises at first, of any loss", "--alpha-epochs 8", ANY, "Zhao et al. 2022, their code"
    )


def _served(loss: ResponseLoss) -> str:
    return SPARSE if loss.sampled else ANY if loss.topk else DENSE


def _switch(name: str, loss: ResponseLoss) -> str:
    given = "" if loss.choices else ",".join(loss.listed)  # choices are ways of their own
    return f"--loss {name}" + (f" --loss-args {given}" if given else "")


def _features() -> Iterator[Method]:
    hint = "--hints FEATURE=MODULE"
    for name, loss in FEATURE_LOSSES.items():
        yield Method("features", loss.what, f"{hint} --hint-loss {name}", ANY, loss.source)
    yield Method(
        "features", "hints before labels, in two stages", f"{hint} --hint-epochs 10", ANY, "Romero et al. 2015"
    )
    yield Method(
        "features", "layer by layer", f"{hint} {hint} --hint-epochs 10 --hints-in-turn", ANY, "after Romero et al. 2015"
    )


_BASELINES = (
    Method("without a teacher", "hard labels", "--alpha 0", HARD, "the baseline"),
    Method("without a teacher", "label smoothing", "--alpha 0 --label-smoothing 0.1", HARD, "Szegedy et al. 2016"),
)
_SEVERAL = (
    Method(
        "several teachers",
        "mean probability, weighed",
        "--labels A=0.7 --labels B=0.3 --mix probs",
        DENSE,
        "Hinton, Vinyals and Dean 2015",
    ),
    Method(
        "several teachers",
        "mean logit, weighed",
        "--labels A=0.7 --labels B=0.3 --mix logits",
        DENSE,
        "Hinton, Vinyals and Dean 2015",
    ),
    Method(
        "several teachers",
        "the surest for each example",
        "--labels A --labels B --mix confident",
        DENSE,
        "after Kwon et al. 2020 (weights by entropy)",
    ),
    Method(
        "several teachers",
        "mean of those who are right",
        "--labels A=0.7 --labels B=0.3 --mix correct",
        DENSE,
        "after Meng et al. 2019 (conditional learning)",
    ),
    Method(
        "several teachers",
        "a loss for each, weighed",
        "--labels A=0.7 --labels B=0.3 --mix losses",
        ANY,
        "Hinton, Vinyals and Dean 2015",
    ),
    Method(
        "several teachers",
        "each knows some of the classes",
        "--labels A --labels B --mix losses",
        ANY,
        "Vongkulbhisal et al. 2019; Hinton et al. 2015, section 5",
    ),
)
_TOGETHER = (
    Method(
        "collaborative", "mutual learning of equals", "--peers 2 --temperature 1", EITHER, "Zhang et al. 2018 (DML)"
    ),
    Method(
        "collaborative", "mutual learning of other kinds", "--peer cnn-16 --temperature 1", EITHER, "Zhang et al. 2018"
    ),
    Method(
        "collaborative",
        "the same with feature maps",
        "--peers 2 --temperature 1 --hints FEATURE=MODULE",
        EITHER,
        "after Chung et al. 2020 (AFD, without discriminators)",
    ),
    Method(
        "collaborative",
        "their gated ensemble teaches each",
        "--peers 4 --exchange ensemble --temperature 3",
        EITHER,
        "after Lan et al. 2018 (ONE)",
    ),
    Method(
        "online",
        "from a teacher still in training",
        "--peer cnn-16 --exchange online",
        EITHER,
        "after Zhou et al. 2018",
    ),
    Method(
        "online",
        "the same with features",
        "--peer cnn-16 --exchange online --hints FEATURE=MODULE",
        EITHER,
        "after Ren et al. 2021",
    ),
)
_HEADS = (
    Method("several teachers", "a head for each", "--labels A --labels B --mix heads", ANY, "Tran et al. 2020 (Hydra)"),
)
_CHAINS = (
    Method(
        "teacher - tutor - student",
        "one link of a chain (dump --run RUN)",
        "--cache TUTOR",
        ANY,
        "Mirzadeh et al. 2020",
    ),
    Method(
        "teacher - tutor - student",
        "the teacher and all tutors",
        "--labels TEACHER --labels TUTOR --mix losses",
        ANY,
        "after Son et al. 2021 (no one left out at random)",
    ),
    Method("online", "the teacher's route", "--route CACHE1 --route CACHE2", ANY, "after Jin et al. 2019"),
    Method("born again", "the next generation (dump --run RUN)", "--cache LAST", ANY, "Furlanello et al. 2018"),
    Method("born again", "all generations", "--labels FIRST --labels LAST", DENSE, "after Furlanello et al. 2018"),
)
_DATA = (
    Method("data", "replayed views", "--train-views all --label-view own", ANY, "Beyer et al. 2022"),
    Method("data", "fixed label of the plain view", "--train-views all --label-view plain", ANY, "Beyer et al. 2022"),
    Method("data", "mixup (dump --transform mixup)", "--train-views all", ANY, "Zhang et al. 2018"),
    Method("data", "CutMix (dump --transform cutmix)", "--train-views all", ANY, "Yun et al. 2019"),
    Method("data", "synthetic examples (MUNGE)", "--data munge:BASE --alpha 1", ANY, "Bucila et al. 2006"),
    Method("data", "wrong hard labels", "--label-noise 0.2", ANY, "what the others are held against"),
    Method("data", "few hard labels", "--labelled-fraction 0.05", ANY, "Hinton, Vinyals and Dean 2015"),
    Method("data", "omitted class", "--omit-class NAME --alpha 1", ANY, "Hinton, Vinyals and Dean 2015"),
)
