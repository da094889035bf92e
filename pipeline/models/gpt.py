"""``gpt-WIDTH``: a small causal language model, teacher or student, made as the larger ones of today are.

Its parts have names, so that a feature can be asked for: ``hint=body.blocks.3`` is what the fourth block gives, and
``hint=body`` the hidden states under the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ModelError
from pipeline.models.causal import Causal

_BASE = 10_000.0


def turns(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, K/2) of rotary positions 0 to T - 1, in float32 or wider, on the device of ``like``.

    Pair n of the K values of a head is turned by position * 10000^(-2n/K) (Su et al. 2021, RoFormer, equation 15).
    They are made in each pass: a table would fix the longest sequence, and be rounded with a model cast to bfloat16.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    steps = torch.arange(0, size, 2, device=like.device, dtype=dtype) / size
    angles = torch.outer(torch.arange(length, device=like.device, dtype=dtype), _BASE**-steps)
    return angles.cos(), angles.sin()


def turned(x_BHTK: Tensor, cosines_TK: Tensor, sines_TK: Tensor) -> Tensor:
    """Queries or keys (B, H, T, K) turned by their positions: pair n is made of values n and n + K/2."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cosines_TK - second * sines_TK, second * cosines_TK + first * sines_TK], dim=-1).type_as(
        x_BHTK
    )


class Attention(nn.Module):
    """Causal self-attention of several heads with rotary positions: a token sees itself and those before it.

    So tokens appended on the right, padding among them, change nothing before them, and need no mask.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, cosines_TK: Tensor, sines_TK: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        q, k = turned(q, cosines_TK, sines_TK), turned(k, cosines_TK, sines_TK)
        rate = self.dropout if self.training else 0.0
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        found: Tensor = self.proj(mixed_BHTK.transpose(1, 2).flatten(2))
        return found


class Gated(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate) * value), gate and value from one product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, value = self.up(x_BTD).chunk(2, dim=-1)
        found: Tensor = self.down(F.silu(gate) * value)
        return found


class Block(nn.Module):
    """Attention, then the gated layer, each on the normed input (Zhang and Sennrich 2019) and added to it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout)
        self.mlp = Gated(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cosines_TK: Tensor, sines_TK: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), cosines_TK, sines_TK))
        added: Tensor = self.dropout(self.mlp(self.norm2(x_BTD)))
        return x_BTD + added


class Body(nn.Module):
    """Embedding, blocks and a last norm: ids (B, T) int64 of any length T to hidden states (B, T, D)."""

    def __init__(self, width: int, vocabulary: int, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.size = width // heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Raises ModelError for inputs that are no token numbers."""
        if ids_BT.is_floating_point():
            raise ModelError(f"a gpt takes token numbers (B, T), of --data tokens:FOLDER; found {ids_BT.dtype} inputs")
        x_BTD = self.dropout(self.embedding(ids_BT))
        positions = turns(ids_BT.shape[1], self.size, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, *positions)
        found: Tensor = self.norm(x_BTD)
        return found


class Gpt(Causal):
    """Token numbers (B, T) int64 to logits (B, T, V); with ``tied``, the head's weight is the embedding's.

    Weights start normal, as wide as keeps the size of what goes through: logits of about 1 come from the normed hidden
    states. Those that end a residual branch are narrower, as 2 a layer are summed (Radford et al. 2019). Its 0.02 for
    all, made for a width of 768, was measured to learn more slowly at 64 and 128.
    """

    def __init__(
        self, width: int, vocabulary: int, layers: int, heads: int, hidden: int, dropout: float, tied: bool
    ) -> None:
        body, head = Body(width, vocabulary, layers, heads, hidden, dropout), nn.Linear(width, vocabulary, bias=False)
        super().__init__(body, head)
        for name, module in body.named_modules():
            if isinstance(module, nn.Linear):
                branches = 2 * layers if name.endswith(("proj", "down")) else 1
                nn.init.normal_(module.weight, std=(branches * module.in_features) ** -0.5)
        nn.init.normal_(body.embedding.weight, std=width**-0.5)
        nn.init.normal_(head.weight, std=width**-0.5)
        if tied:
            head.weight = body.embedding.weight


def gpt(
    width: int,
    *,
    classes: int,
    input_shape: tuple[int, ...],
    layers: int = 4,
    heads: int | None = None,
    mlp: float = 8 / 3,
    dropout: float = 0.0,
    tied: bool = True,
) -> nn.Module:
    """``gpt-WIDTH`` for token sequences (T,) of ``classes`` tokens; sequences of any length will do.

    ``heads`` is width / 64 by default, ``mlp`` the hidden units of the gated layer for each unit of width, rounded to
    a multiple of 8 (8/3 of three matrices are as many weights as the usual 4 of two). About 12 layers width^2
    parameters, and V width for the embedding.

    Raises ModelError for data that are no token sequences, or numbers that do not fit together.
    """
    name = f"gpt-{width}"
    if len(input_shape) != 1:
        raise ModelError(
            f"{name} takes sequences of token numbers, such as those of --data tokens:FOLDER; this dataset's examples "
            f"have shape {tuple(input_shape)}"
        )
    heads = max(1, width // 64) if heads is None else heads
    if layers < 1 or heads < 1 or mlp <= 0 or not 0 <= dropout < 1:
        raise ModelError(
            f"{name} needs layers and heads of 1 or more, mlp above 0 and dropout of 0 to below 1; found "
            f"layers={layers} heads={heads} mlp={mlp} dropout={dropout}"
        )
    if width % (2 * heads):
        fitting = [str(n) for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
        advice = f"heads={' or '.join(fitting[:8])} would do" if fitting else "use an even width"
        raise ModelError(
            f"{name} needs heads of an even whole number of values each, which rotary positions turn in pairs; "
            f"{width} / {heads} heads is {width / heads:g}: {advice}"
        )
    return Gpt(width, classes, layers, heads, max(8, 8 * round(mlp * width / 8)), dropout, tied)
