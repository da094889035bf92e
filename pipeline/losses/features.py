"""The losses on features by name: what each compares, what has to stand before it, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.losses.attention import attention_transfer_loss
from pipeline.losses.contrastive import contrastive_loss
from pipeline.losses.hints import hint_loss
from pipeline.losses.projection import Bridge, EmbeddingHeads, make_projection
from pipeline.losses.relational import angle_relation_loss, distance_relation_loss, similarity_loss
from pipeline.losses.sides import no_shared_places, shared_places


@dataclass(frozen=True)
class FeatureLoss:
    """A loss on the features of the student and of the teacher, beside those on the logits.

    - ``function``: of what ``bridge`` gives for both sides, (B,);
    - ``what``: it is, in a few words; ``source``: paper and year;
    - ``weight``: to begin with, beside a KL of T = 4 with its factor T^2: see ``FEATURE_LOSSES``;
    - ``projected``: what ``bridge`` learns: "plain", a map of the student's features to the teacher's shape;
      "embedded", a head on either side; "none", nothing;
    - ``places``: it compares places, so that both sides should be maps, or sequences of one length;
    - ``batch``: a row's value depends on the other rows of its batch. Rows without teacher features have to be left
      out before: with weight 0 they would still count in the values of the others.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    what: str
    source: str
    weight: float
    projected: str = "none"
    places: bool = False
    batch: bool = False

    def bridge(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> Bridge:
        """The module that makes what the loss takes, for features whose rows have these shapes.

        Raises ModelError, naming both shapes, when the loss is not defined on them.
        """
        if self.projected == "plain":
            return make_projection(student_shape, teacher_shape)
        if self.projected == "embedded":
            return EmbeddingHeads(student_shape, teacher_shape)
        bridge = Bridge(student_shape, teacher_shape)
        if self.places and shared_places(*bridge.shapes) is None:
            raise no_shared_places(f"{self.what} needs", *bridge.shapes)
        return bridge

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Values (B,) of a batch, of what ``bridge`` gave."""
        return self.function(student, teacher)


FEATURE_LOSSES: dict[str, FeatureLoss] = {
    "hint": FeatureLoss(
        hint_loss, "squared difference of the features", "Romero et al. 2015 (FitNets)", 10.0, projected="plain"
    ),
    "attention": FeatureLoss(
        attention_transfer_loss,
        "squared difference of the attention maps",
        "Zagoruyko and Komodakis 2017",
        1000.0,
        places=True,
    ),
    "distance": FeatureLoss(
        distance_relation_loss, "distances between rows", "Park et al. 2019 (RKD-D)", 25.0, batch=True
    ),
    "angle": FeatureLoss(angle_relation_loss, "angles between rows", "Park et al. 2019 (RKD-A)", 50.0, batch=True),
    "similarity": FeatureLoss(
        similarity_loss, "similarities between rows", "Tung and Mori 2019 (SP)", 3000.0, batch=True
    ),
    "contrastive": FeatureLoss(
        contrastive_loss,
        "each row told from the others of the batch",
        "after Tian et al. 2020 (CRD)",
        1.0,
        projected="embedded",
        batch=True,
    ),
}
"""By name. The weights of distance, angle, similarity and attention are those of the comparison in Tian et al. 2020.

Beside 0.9 KL (T = 4) + 0.1 cross-entropy, after 60 and 300 steps of a cnn-8 from a cnn-16 on digits (batches of 64, two
seeds, ``stage1`` and ``stage2``), the gradient of the weighed loss in the student was so many times that of the others:
hint 0.3 to 1.9, distance 0.1 to 0.3, angle 0.1 to 0.7, similarity 0.1 to 1.4, contrastive 0.6 to 1.5, attention 1.2 to
2 on 4 x 4 places and 4 to 7 on 2 x 2: its values go with 1 / places, and 100 is enough on maps so small. The weight of
hints is a tenth of that comparison's; it has to fall with the square of the teacher's values.
"""
