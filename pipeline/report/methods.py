"""What a run did, told from its configuration and never from its name: its setting, its labels, its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLAIN, AUGMENTED, FEW, OMITTED = "plain", "augmented", "few", "omitted"
SETTINGS = (PLAIN, AUGMENTED, FEW, OMITTED)
HARD, SOFT, FIXED, REPLAYED = "hard", "soft", "fixed", "replayed"
KINDS = (HARD, SOFT, FIXED, REPLAYED)
KL = "KL"

KIND_TITLES = {
    HARD: "hard labels",
    SOFT: "soft labels",
    FIXED: "soft, fixed",
    REPLAYED: "soft, replayed",
}
KIND_NOUNS = {HARD: "hard labels", SOFT: "soft labels", FIXED: "fixed labels", REPLAYED: "replayed views"}
KIND_MEANINGS = {
    HARD: "cross-entropy on the hard labels alone",
    SOFT: "distilled from the teacher's cached answers on the plain images",
    FIXED: "random views of each image, all with the teacher's answer to the plain image",
    REPLAYED: "random views of each image, each with the teacher's answer to that very view",
}
_MIXES = {
    "probs": "mean probability",
    "logits": "mean logit",
    "confident": "the surest",
    "correct": "those that are right",
    "losses": "a loss each",
    "heads": "a head each",
}
_CAPITALS = {"kl": "KL", "jensen": "Jensen", "shannon": "Shannon", "dkd": "DKD", "dist": "DIST"}


@dataclass(frozen=True, order=True)
class Method:
    """``setting``: what was scarce; ``kind``: which labels; ``detail``: the share of labels or the class left out.

    ``variant``: the loss, where it is not the usual one (cross-entropy on hard labels, KL on soft ones), and what was
    corrected afterwards.
    """

    setting: str
    kind: str
    detail: str = ""
    variant: str = ""

    @property
    def setting_title(self) -> str:
        """The setting as a heading."""
        return {
            PLAIN: "All hard labels, plain images",
            AUGMENTED: "Trained on random views",
            FEW: f"{self.detail} of the hard labels",
            OMITTED: f"No “{self.detail}” in the training set",
        }[self.setting]

    @property
    def title(self) -> str:
        """The labels, as a row of a table under its setting."""
        return f"{KIND_TITLES[self.kind]}{self.variant and f', {self.variant}'}"

    @property
    def loss_title(self) -> str:
        """The loss, where setting and labels are said beside it."""
        return self.variant or (KIND_TITLES[HARD] if self.kind == HARD else KL)

    @property
    def full_title(self) -> str:
        """The labels, for where the setting is not said beside them."""
        suffix = {
            PLAIN: "",
            AUGMENTED: ", random views",
            FEW: f", {self.detail} labelled",
            OMITTED: f", no “{self.detail}”",
        }[self.setting]
        return f"{self.title}{suffix if self.kind in (HARD, SOFT) else ''}"


def method_of(config: Mapping[str, Any], labels: str = "", corrected: Sequence[str] = ()) -> Method:
    """Classify a training configuration.

    ``alpha`` is the weight of the soft labels, ``train_views`` which views are trained on, ``label_view`` whose label
    a view takes (its own or that of the plain one), ``labelled_fraction`` the share of examples that keep their hard
    label, ``omit_class`` the class without any example. ``labels`` names the soft labels where others are the usual,
    ``corrected`` the classes whose bias was corrected for the evaluation.
    """
    soft = is_soft(config)
    views = str(config.get("train_views") or "plain") not in ("plain", "1")
    fraction = float(config.get("labelled_fraction") or 1.0)
    omitted = str(config.get("omit_class") or "")
    if not soft:
        kind = HARD
    elif views:
        kind = FIXED if str(config.get("label_view", "own")) == "plain" else REPLAYED
    else:
        kind = SOFT
    variant = _variant(config, soft, labels)
    if corrected:
        variant = ", ".join(
            filter(None, [variant or (KL if soft else ""), f"bias of {' and '.join(corrected)} corrected"])
        )
    if omitted:
        return Method(OMITTED, kind, omitted, variant)
    if fraction < 1:
        return Method(FEW, kind, f"{100 * fraction:g}%", variant)
    return Method(AUGMENTED if views else PLAIN, kind, "", variant)


def is_soft(config: Mapping[str, Any]) -> bool:
    """Whether there were soft labels, and they weighed something."""
    alpha = config.get("alpha")
    return any(config.get(name) for name in ("cache", "labels", "route", "teacher")) and (
        alpha is None or float(alpha) > 0
    )


def _variant(config: Mapping[str, Any], soft: bool, labels: str) -> str:
    """What is not as usual about the loss, in words; empty where all is. An option of a new method adds a line here."""
    smoothing = float(config.get("label_smoothing") or 0.0)
    smoothed = f"label smoothing {smoothing:g}" if smoothing else ""
    noise = float(config.get("label_noise") or 0.0)
    noisy = f"{100 * noise:g}% of them wrong" if noise else ""
    peers, hints = _peers(config), _hints(config)
    if peers and hints:
        peers, hints = f"{peers} {hints}", ""  # they learn the features of each other
    if not soft:
        return ", ".join(filter(None, [peers, smoothed, noisy and f"hard labels, {noisy}"]))
    loss = " ".join(_CAPITALS.get(word, word) for word in str(config.get("loss") or "kl").split("-"))
    loss = loss.replace("Jensen Shannon", "Jensen-Shannon")
    given = ", ".join(str(pair).replace("=", " ") for pair in config.get("loss_args") or ())
    said = [
        f"{'standardised ' if config.get('standardise') else ''}{loss}{given and f' ({given})'}",
        f"rising over {config['alpha_epochs']} epochs" if config.get("alpha_epochs") else "",
        _teachers(config),
        f"along {len(config['route'])} checkpoints" if config.get("route") else "",
        labels and f"from {labels}",
        hints,
        smoothed and f"with {smoothed}",
        noisy and f"and hard labels, {noisy}",
        peers and f"and {peers}",
    ]
    text = " ".join(filter(None, said)) + (", bare" if config.get("bare_topk") else "")
    return "" if text == KL else text


def _teachers(config: Mapping[str, Any]) -> str:
    """Several caches, and what was made of them."""
    count, mix = len(config.get("labels") or ()), str(config.get("mix") or "probs")
    return f"from {count} caches, {_MIXES.get(mix, mix)}" if count else ""


def _peers(config: Mapping[str, Any]) -> str:
    """Students that learnt beside this one: how, how many with it, and of which other kinds."""
    alike, others = int(config.get("peers") or 0), [str(reference) for reference in config.get("peer") or ()]
    if not alike and not others:
        return ""
    kind = str(config.get("exchange") or "mutual")
    if kind == "online":
        how = f"online learning from {' and '.join(others)}"
    else:
        how = "mutual learning" if kind == "mutual" else f"learning from the {kind}"
        how += f" of {max(alike, 1) + len(others)}" + (f" (with {' and '.join(others)})" if others else "")
    weight = float(config.get("peer_weight") or 1.0)
    return how if weight == 1.0 else f"{how}, weight {weight:g}"


def _hints(config: Mapping[str, Any]) -> str:
    """Features that were learnt too: by which loss, of how many layers, and when."""
    layers = len(config.get("hints") or ())
    if not layers:
        return ""
    how = [str(config.get("hint_loss") or "hint"), f"{layers} layers" if layers > 1 else ""]
    when = "layer by layer, before labels" if config.get("hints_in_turn") else "before labels"
    how.append(when if config.get("hint_epochs") else "")
    return f"with features ({', '.join(filter(None, how))})"
