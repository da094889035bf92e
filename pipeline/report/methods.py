"""What a run did, told from its configuration and never from its name: the setting it was in and the labels it had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAIN, AUGMENTED, FEW, OMITTED = "plain", "augmented", "few", "omitted"
SETTINGS = (PLAIN, AUGMENTED, FEW, OMITTED)
HARD, SOFT, FIXED, REPLAYED = "hard", "soft", "fixed", "replayed"
KINDS = (HARD, SOFT, FIXED, REPLAYED)

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


@dataclass(frozen=True, order=True)
class Method:
    """``setting``: what was scarce; ``kind``: which labels; ``detail``: the share of labels or the class left out."""

    setting: str
    kind: str
    detail: str = ""

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
        return KIND_TITLES[self.kind]

    @property
    def full_title(self) -> str:
        """The labels, for where the setting is not said beside them."""
        suffix = {
            PLAIN: "",
            AUGMENTED: ", random views",
            FEW: f", {self.detail} labelled",
            OMITTED: f", no “{self.detail}”",
        }[self.setting]
        return f"{KIND_TITLES[self.kind]}{suffix if self.kind in (HARD, SOFT) else ''}"


def method_of(config: Mapping[str, Any]) -> Method:
    """Classify a training configuration.

    ``alpha`` is the weight of the soft labels, ``train_views`` which views are trained on, ``label_view`` whose label
    a view takes (its own or that of the plain one), ``labelled_fraction`` the share of examples that keep their hard
    label, ``omit_class`` the class without any example.
    """
    alpha = config.get("alpha")
    soft = any(config.get(name) for name in ("cache", "labels", "teacher")) and (alpha is None or float(alpha) > 0)
    views = str(config.get("train_views") or "plain") not in ("plain", "1")
    fraction = float(config.get("labelled_fraction") or 1.0)
    omitted = str(config.get("omit_class") or "")
    if not soft:
        kind = HARD
    elif views:
        kind = FIXED if str(config.get("label_view", "own")) == "plain" else REPLAYED
    else:
        kind = SOFT
    if omitted:
        return Method(OMITTED, kind, omitted)
    if fraction < 1:
        return Method(FEW, kind, f"{100 * fraction:g}%")
    return Method(AUGMENTED if views else PLAIN, kind)
