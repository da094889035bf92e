"""What a student with a head for each teacher minimises (``--mix heads``)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.errors import EncodingError
from pipeline.losses import mean_logits, opinions_loss
from pipeline.softlabels import Opinions, SoftLabels
from pipeline.training.objective import Batch, Objective


@dataclass(frozen=True)
class HeadsObjective(Objective):
    """The response loss of each head from its own teacher, by the teachers' weights, which come to 1 for each row; and
    the hard labels' loss of the heads' mean probability.

    Tran et al. 2020 (Hydra) sum the losses of the heads; here it is their mean, of the size that one has. Student
    logits are (M, B, C), soft labels the opinions of M teachers.
    """

    def hard_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        return super().hard_rows(mean_logits(logits, temperature=1.0), batch)

    def soft_rows(self, logits: Tensor, batch: Batch, soft: SoftLabels | Opinions) -> Tensor:
        if not isinstance(soft, Opinions) or len(soft.opinions) != len(logits):
            found = f"{len(soft.opinions)} teachers" if isinstance(soft, Opinions) else "those of one"
            raise EncodingError(f"{len(logits)} heads need the soft labels of as many teachers; found {found}")
        each = [
            opinions_loss(own, batch.labels, Opinions((opinion,)), self._rows, batch=self.response.batch)
            for own, opinion in zip(logits, soft.opinions, strict=True)
        ]
        return sum(each[1:], start=each[0])
