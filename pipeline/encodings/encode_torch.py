"""The encodings on the device where the logits are, so that only what is kept crosses to the host.

Twins of the numpy methods ``encode``, which say what each array means. Dense arrays are the same bit for bit. Top-k
keeps the same classes and logits; its masses may differ in the last bit, for ``exp`` is another one, and for the
same reason a draw of ``Sampled`` that falls on the border of two classes may fall on the other side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings import sampled_torch
from pipeline.encodings.base import LOWEST_EXPONENT, Encoding, Keys
from pipeline.encodings.coarse import BITS
from pipeline.encodings.dense import FLAT, LEVELS, Dense
from pipeline.encodings.device_torch import finite, host
from pipeline.encodings.sampled import Sampled
from pipeline.encodings.topk import TopK, id_dtype

Encoded = dict[str, npt.NDArray[Any]]


def encode(encoding: Encoding, logits: Tensor, keys: Keys | None = None) -> Encoded:
    """``encoding.encode`` of ``logits`` (N, C), taken as float32, on their device; the arrays lie on the host.

    Raises EncodingError as ``encoding.encode`` does.
    """
    if isinstance(encoding, Sampled):
        return sampled_torch.encode(encoding, logits, keys)
    values = logits.detach().float()
    if logits.ndim == 2 and logits.is_floating_point() and min(values.shape) > 0:
        found = None
        if isinstance(encoding, Dense):
            found = _dense(encoding, values)
        elif isinstance(encoding, TopK) and encoding.k <= values.shape[1]:
            found = _topk(encoding, values)
        if found is not None:
            return found
    # Another encoding, or something that cannot be kept: numpy's own method knows, and says which row it is.
    return encoding.encode((logits if logits.dtype == torch.float64 else values).cpu().numpy(), keys)


def _dense(encoding: Dense, values: Tensor) -> Encoded | None:
    """The arrays of a dense encoding; None when a value cannot be kept."""
    top, bottom = values.amax(dim=1), values.amin(dim=1)
    if not finite(top, bottom):
        return None
    if encoding.dtype == "float32":
        return {"logits": host(values.contiguous())}
    span = top - bottom
    relative = values - top[:, None]
    if encoding.dtype == "float16":
        # Rounding keeps the order: when the lowest value of a row fits, all of them do.
        return {"logits": host(relative.half())} if finite(span.half()) else None
    if not finite(span):
        return None
    # Divisors are tensors on the device: by a number, CUDA multiplies with its reciprocal, which rounds otherwise.
    levels, one = torch.full_like(span, LEVELS), torch.ones_like(span)
    scale = torch.where(span < float(FLAT), torch.zeros_like(span), span / levels)
    kept = scale > 0
    relative /= torch.where(kept, scale, one)[:, None]
    relative += torch.where(kept, one * (LEVELS // 2), torch.zeros_like(span))[:, None]
    half = LEVELS // 2
    return {"scale": host(scale), "values": host(relative.round_().clamp_(-half, half).to(torch.int8))}


def _topk(encoding: TopK, values: Tensor) -> Encoded | None:
    """The arrays of a top-k encoding; None when a value cannot be kept."""
    rows, classes = values.shape
    top, bottom = values.amax(dim=1), values.amin(dim=1)
    if not finite(top, bottom):
        return None
    kept = _largest(values, encoding.k)
    ids = kept.nonzero()[:, 1].view(rows, encoding.k)
    relative = (values - top[:, None]).clamp_(min=torch.finfo(torch.float32).min)
    chosen = relative.gather(1, ids)
    if encoding.dtype == "float16":
        chosen = chosen.half()
        if not finite(chosen):
            return None
    normaliser, residual = _masses(encoding, relative, kept)
    if encoding.dtype in BITS:
        # Of few classes: what numpy makes of them here takes no longer than the way of larger arrays would.
        return encoding.packed(classes, *(host(each) for each in (ids.int(), chosen, normaliser, residual)))
    first = torch.zeros(rows, 1, dtype=ids.dtype, device=ids.device)
    return {
        "id_deltas": host(ids.diff(dim=1, prepend=first).int()).astype(id_dtype(classes)),
        "logits": host(chosen),
        "log_normaliser": host(normaliser),
        "log_residual": host(residual),
    }


def _largest(values: Tensor, k: int) -> Tensor:
    """(N, C) mask of the ``k`` largest of each row; of equal ones the first."""
    threshold = values.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    mask = values >= threshold
    if bool((mask.sum(dim=1) > k).any()):
        above = values > threshold
        tied = mask & ~above
        room = k - above.sum(dim=1, keepdim=True)
        mask = above | (tied & (tied.cumsum(dim=1) <= room))
    return mask


def _masses(encoding: TopK, relative: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """log_normaliser and log_residual (N, S) float32 of ``relative`` (N, C), of which ``kept`` (N, C) are kept."""
    # MPS has no float64; on the others the tail of a large vocabulary is summed in it.
    wide = torch.float32 if relative.device.type == "mps" else torch.float64

    def log_sum_of_exp(scaled: Tensor) -> Tensor:
        return scaled.clamp(min=LOWEST_EXPONENT).exp().sum(dim=1, dtype=wide).log()

    normaliser = torch.stack([log_sum_of_exp(relative / t) for t in encoding.temperatures], dim=1)
    residual = torch.full_like(normaliser, -torch.inf)
    if encoding.k < relative.shape[1]:
        dropped = relative.masked_fill(kept, -torch.inf)
        largest = dropped.amax(dim=1, keepdim=True)
        dropped -= largest
        tails = [log_sum_of_exp(dropped / t) for t in encoding.temperatures]
        shares = [largest[:, 0].to(wide) / t + tail for t, tail in zip(encoding.temperatures, tails, strict=True)]
        residual = torch.stack(shares, dim=1) - normaliser
        residual = residual.clamp(min=float(np.finfo(np.float32).min))  # -inf is kept for "nothing was dropped"
    return normaliser.float(), residual.float()
