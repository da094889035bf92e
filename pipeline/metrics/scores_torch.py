"""``scores.score`` of next tokens on the device where their logits are: for tens of thousands of classes.

float32: a log-probability is off by some 1e-6 nats, and so are sums over the vocabulary. What is kept of each token
goes to the host, and means are taken there in float64. The numpy functions say what is meant; tests hold it to them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.metrics.scores import Scores
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK


class ToldTensors:
    """Soft labels of P rows at one temperature, as tensors on ``device``; see ``distributions.Told``."""

    def __init__(self, soft: SoftLabels, temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.soft = soft.map(lambda array: _tensor(array).to(device))

    @cached_property
    def predicted(self) -> Tensor | None:
        """(P,), None of sampled labels."""
        soft = self.soft
        if isinstance(soft, Sampled):
            return None
        best: Tensor = soft.logits.argmax(dim=1)
        return best if isinstance(soft, Dense) else soft.ids.gather(1, best[:, None])[:, 0]

    @cached_property
    def log_p(self) -> Tensor:
        """Of dense labels, (P, V)."""
        assert isinstance(self.soft, Dense)
        return _log_softmax(self.soft.logits, self.temperature)

    @cached_property
    def p(self) -> Tensor:
        """Of dense labels, (P, V)."""
        return self.log_p.exp()


def score(
    logits_PV: Tensor,
    labels_P: npt.NDArray[np.int64],
    told: ToldTensors | None = None,
    groups_P: npt.NDArray[np.int64] | None = None,
) -> Scores:
    """Reduce the logits of P labelled rows to what the metrics need. Raises DataError when they are not finite."""
    finite = torch.isfinite(logits_PV).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise DataError(f"logits should be finite; {bad} of {len(logits_PV)} rows hold NaN or infinities")
    at_label = torch.from_numpy(labels_P).to(logits_PV.device)[:, None]
    log_q = _log_softmax(logits_PV, 1.0)
    q = log_q.exp()
    predictions = logits_PV.argmax(dim=1)
    own = q.gather(1, at_label)[:, 0]
    # sum (q - y)^2 = sum of the others' squares + (1 - q_label)^2: nothing cancels.
    brier = q.square().scatter(1, at_label, 0.0).sum(dim=1) + (1 - own).square()
    found: dict[str, Any] = {
        "predictions": predictions,
        "confidence": q.amax(dim=1),
        "log_likelihood": log_q.gather(1, at_label)[:, 0],
        "rank": (logits_PV >= logits_PV.gather(1, at_label)).sum(dim=1, dtype=torch.int32),
        "brier": brier,
    }
    if told is not None:
        found |= _against(logits_PV, log_q, q, predictions, told)
    arrays: dict[str, Any] = {name: _host(value) for name, value in found.items()}
    return Scores(labels=labels_P, groups=groups_P, **arrays)


def _host(values: Tensor | None) -> npt.NDArray[Any] | None:
    """On the host, floats as float64: not every device has these."""
    if values is None:
        return None
    array = values.cpu().numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else np.asarray(array)


def _against(logits: Tensor, log_q: Tensor, q: Tensor, predictions: Tensor, told: ToldTensors) -> dict[str, Any]:
    soft, temperature = told.soft, told.temperature
    if temperature != 1:
        log_q = _log_softmax(logits, temperature)
        q = log_q.exp()
    if isinstance(soft, Sampled):
        terms = -soft.at(temperature).float() * log_q[soft.rows, soft.ids]
        return {"cross_entropy": torch.zeros(len(soft), device=q.device).index_add(0, soft.rows, terms)}
    found: dict[str, Any] = {"agree": None if told.predicted is None else predictions == told.predicted}
    if isinstance(soft, Dense):
        found["kl"] = (told.p * (told.log_p - log_q)).sum(dim=1)
        exact = torch.minimum(told.p, q).sum(dim=1)
        return found | {"accepted_least": exact, "accepted_most": exact}
    return found | _kept(soft, temperature, log_q, q)


def _kept(soft: TopK, temperature: float, log_q: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Of top-k labels: the divergence with the dropped as one class, and the bounds of ``speculation.acceptance``."""
    log_p, log_rest = (values.float() for values in soft.at(temperature))
    kept, rest, ids = log_p.exp(), log_rest.exp(), soft.ids
    outside = q.scatter(1, ids, 0.0).sum(dim=1)
    lost = torch.where(rest > 0, rest * (log_rest - outside.log()), torch.zeros_like(rest))
    kl = (kept * (log_p - log_q.gather(1, ids))).sum(dim=1) + lost
    known = torch.minimum(kept, q.gather(1, ids)).sum(dim=1)
    ceiling = kept.amin(dim=1)
    useful = torch.minimum(q, ceiling[:, None]).scatter(1, ids, torch.inf)
    dropped = useful.sort(dim=1).values[:, : q.shape[1] - ids.shape[1]]
    sums = torch.cat([q.new_zeros((len(q), 1)), dropped.cumsum(dim=1)], dim=1)
    filled = torch.where(ceiling > 0, rest / ceiling, torch.zeros_like(rest))
    whole = filled.floor().clamp(max=dropped.shape[1]).long()
    lowest = sums.gather(1, whole[:, None])[:, 0]
    if dropped.shape[1]:
        following = dropped.gather(1, whole.clamp(max=dropped.shape[1] - 1)[:, None])[:, 0]
        over = torch.minimum(following, (filled - whole) * ceiling)
        lowest = lowest + torch.where(whole < dropped.shape[1], over, torch.zeros_like(over))
    highest = torch.minimum(rest, sums[:, -1])
    return {
        "kl": kl,
        "accepted_least": (known + torch.minimum(lowest, highest)),
        "accepted_most": (known + highest),
    }


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature if temperature != 1 else logits.float()).log_softmax(dim=1)


def _tensor(array: Any) -> Tensor:
    """An array of soft labels as a tensor: torch gathers by signed integers only."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64) if array.dtype.kind in "iu" else array))
