"""The encodings on the device where the logits are, so that only what is kept crosses to the host.

Twins of the numpy methods ``encode``, which say what each array means. Dense arrays are the same bit for bit. Top-k
keeps the same classes and logits; its masses may differ in the last bits, for they are summed in another order, and for
the same reason a draw of ``Sampled`` that falls on the border of two classes may fall on the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings import sampled_torch, topk_torch
from pipeline.encodings.base import Arrays, Encoding, Keys, row_slices
from pipeline.encodings.blocks_torch import BLOCK
from pipeline.encodings.dense import FLAT, LEVELS, Dense
from pipeline.encodings.device_torch import Coming
from pipeline.encodings.sampled import Sampled
from pipeline.encodings.topk import TopK

Encoded = dict[str, npt.NDArray[Any]]

ELEMENTS = {"cpu": 2**22, "cuda": 2**30}
"""Logits that are worked on at a time: on a processor those that stay near it."""


@dataclass(frozen=True)
class Begun:
    """An encoding that was begun on a device, which may still be at it.

    ``best`` (N,) int64, there: the class of the largest logit of each row, the first of equal ones; None where the
    encoding does not come by it.
    """

    encoding: Encoding
    again: Callable[[], Tensor]
    keys: Keys | None
    coming: Coming | None
    finish: Callable[[Arrays], Encoded]
    best: Tensor | None

    def arrays(self) -> Encoded:
        """As ``Encoding.encode`` gives them; raises EncodingError as that does."""
        if self.coming is not None:
            found = self.coming.arrays()
            if found.pop("finite").all():
                return self.finish(found)
        # Another encoding, or something that cannot be kept: numpy's own method knows, and says which row it is.
        logits = self.again().detach()
        kept = logits if logits.dtype == torch.float64 or not logits.is_floating_point() else logits.float()
        return self.encoding.encode(kept.cpu().numpy(), self.keys)


def encode(encoding: Encoding, logits: Tensor, keys: Keys | None = None) -> Encoded:
    """``encoding.encode`` of ``logits`` (N, C), taken as float32, on their device; the arrays lie on the host.

    Raises EncodingError as ``encoding.encode`` does.
    """
    return begin(encoding, logits, keys, lambda: logits).arrays()


def begin(encoding: Encoding, logits: Tensor, keys: Keys | None, again: Callable[[], Tensor]) -> Begun:
    """``encode`` without waiting for the device. ``again`` gives the logits once more, should some not be finite.

    Raises EncodingError for keys that are missing.
    """
    finish: Callable[[Arrays], Encoded] = dict
    made: dict[str, Tensor] | None = None
    logits = logits.detach()
    if logits.ndim == 2 and logits.is_floating_point() and min(logits.shape) > 0:
        (rows, classes), most = logits.shape, ELEMENTS.get(logits.device.type, 2**26)
        if isinstance(encoding, Dense):
            made = _dense(encoding, logits.float())
        elif isinstance(encoding, TopK) and encoding.k <= classes:
            parts = [topk_torch.largest(encoding, logits[part]) for part in row_slices(rows, classes, most)]
            made, finish = _joined(parts), lambda found: encoding.packed(classes, **found)
        elif isinstance(encoding, Sampled):
            places = encoding.places(keys, rows)
            slices = row_slices(rows, max(classes, encoding.n * BLOCK), most)
            parts = [sampled_torch.drawn(encoding, logits[part], places[part]) for part in slices]
            made, finish = _joined(parts), lambda found: encoding.packed(classes, *encoding.counted_up(**found))
    best = None if made is None else made.pop("best", None)
    return Begun(encoding, again, keys, None if made is None else Coming(made), finish, best)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _dense(encoding: Dense, values: Tensor) -> dict[str, Tensor]:
    """The arrays of a dense encoding, and ``finite`` (N,): the rows that can be kept."""
    top, bottom = values.amax(dim=1), values.amin(dim=1)
    finite = torch.isfinite(top) & torch.isfinite(bottom)
    if encoding.dtype == "float32":
        return {"logits": values.contiguous(), "finite": finite}
    span = top - bottom
    relative = values - top[:, None]
    if encoding.dtype == "float16":
        # Rounding keeps the order: when the lowest value of a row fits, all of them do.
        return {"logits": relative.half(), "finite": finite & torch.isfinite(span.half())}
    # Divisors are tensors on the device: by a number, CUDA multiplies with its reciprocal, which rounds otherwise.
    levels, one = torch.full_like(span, LEVELS), torch.ones_like(span)
    scale = torch.where(span < float(FLAT), torch.zeros_like(span), span / levels)
    kept = scale > 0
    relative /= torch.where(kept, scale, one)[:, None]
    relative += torch.where(kept, one * (LEVELS // 2), torch.zeros_like(span))[:, None]
    half = LEVELS // 2
    return {
        "scale": scale,
        "values": relative.round_().clamp_(-half, half).to(torch.int8),
        "finite": finite & torch.isfinite(span),
    }
