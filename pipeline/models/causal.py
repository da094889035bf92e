"""Causal language models as a body and a head, and text sampled from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError, ModelError
from pipeline.models.checks import evaluating, logits_of

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


class Causal(nn.Module):
    """A causal language model that is a linear ``head`` (D to V) on a ``body`` (ids (B, T) to hidden (B, T, D)).

    Models of one's own may derive from it, and give ``body`` and ``head`` to ``__init__``.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of token numbers (B, T) int64: those at position t are of the token after it."""
        logits: Tensor = self.head(self.body(ids_BT))
        return logits


class Narrowed(nn.Module):
    """A model whose vocabulary was padded, with its first ``vocabulary`` logits alone.

    Many are padded to a multiple of 64 or more, for speed: the logits of numbers that no tokenizer gives are dropped.
    What is left is the distribution among the tokens there are, as if the others had no mass.
    """

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.model, self.vocabulary = model, vocabulary

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of token numbers (B, T)."""
        return logits_of(self.model(ids_BT))[..., : self.vocabulary]


class FirstRows(nn.Linear):
    """The first ``rows`` outputs of a linear layer, whose parameters stay where they are."""

    def __init__(self, whole: nn.Linear, rows: int) -> None:
        nn.Module.__init__(self)
        self.whole = whole
        self.in_features, self.out_features = whole.in_features, rows

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(rows, D), a view."""
        return self.whole.weight[: self.out_features]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(rows,), a view, or None."""
        bias: Tensor | None = self.whole.bias
        return None if bias is None else bias[: self.out_features]


class Hidden(nn.Module):
    """The body of a model of transformers: ids (B, T) to its last hidden states (B, T, D), a plain tensor."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Raises ModelError where the model gives none."""
        output = self.base(ids_BT)
        found = getattr(output, "last_hidden_state", None)
        if not isinstance(found, Tensor):
            raise ModelError(f"{type(self.base).__name__} should give hidden states; found {type(output).__name__}")
        return found


def split_head(model: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """``model`` as ``body``, ids (B, T) to hidden states (B, T, D), and ``head``, with weight (V, D) and bias or None.

    Both share the model's parameters, in its own mode: training through them trains the model. None where logits are
    not a plain linear map of the hidden states (scaled or soft-capped ones, several heads), or cannot be shown to be.
    """
    if isinstance(model, Causal):
        # A class that derives from it may do more in a forward of its own.
        plain = type(model).forward is Causal.forward and isinstance(model.head, nn.Linear)
        return (model.body, model.head) if plain else None
    if isinstance(model, Narrowed):
        found = split_head(model.model)
        return None if found is None else (found[0], FirstRows(found[1], model.vocabulary))
    base, output = getattr(model, "base_model", None), getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(base, nn.Module) or base is model or not isinstance(output, nn.Linear):
        return None
    body = Hidden(base)
    return (body, output) if _is_whole(model, body, output) else None


def _is_whole(model: nn.Module, body: nn.Module, head: nn.Linear) -> bool:
    """Whether ``head(body(ids))`` is all that the model does, up to rounding.

    A cap is nearly the identity on small logits, as random weights give them: configs are asked first.
    """
    config = getattr(model, "config", None)
    if any(getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap", "output_multiplier")):
        return False
    scales = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "lm_head_multiplier"))
    if any(scale is not None and scale != 1 for scale in scales):
        return False
    ids = torch.tensor([[0, min(1, head.out_features - 1)]], device=head.weight.device)
    try:
        with evaluating(model), torch.no_grad():
            expected, found = logits_of(model(ids)), head(body(ids))
    except (ModelError, RuntimeError, ValueError, IndexError, TypeError):
        return False
    if expected.shape != found.shape:
        return False
    allowed = _ROUNDING.get(expected.dtype, 0.01) * float(expected.abs().max())
    return float((expected.float() - found.float()).abs().max()) <= allowed


def generate(
    model: nn.Module,
    prompts_BT: Tensor,
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    longest: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Prompts (B, T) int64, or one (T,), each followed by ``tokens`` more: (B, T + tokens) int64, or (T + tokens,).

    Each token is drawn from the softmax of logits / temperature among the ``top_k`` largest (all unless given);
    temperature 0 takes the largest. The model sees the last ``longest`` tokens (all unless given). Prompt n draws its
    own numbers from (seed, n), on the CPU: equal logits give equal text, whatever the device. The whole context is
    run again for each token. Raises ConfigError for a number out of its range, ModelError as ``logits_of`` does.
    """
    if prompts_BT.ndim == 1:
        options = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "longest": longest, "seed": seed}
        return generate(model, prompts_BT[None], **options)[0]  # type: ignore[arg-type]
    if prompts_BT.ndim != 2 or not prompts_BT.shape[1] or prompts_BT.is_floating_point():
        raise ConfigError(
            f"prompts should be token numbers (B, T) of one token or more; found {prompts_BT.dtype} of shape "
            f"{tuple(prompts_BT.shape)}. A start-of-text token may stand for an empty prompt"
        )
    smallest = {"tokens": (tokens, 0), "temperature": (temperature, 0), "top_k": (top_k, 1), "longest": (longest, 1)}
    problems = [
        f"{k} should be {low} or more; found {v}" for k, (v, low) in smallest.items() if v is not None and v < low
    ]
    if problems:
        raise ConfigError(problems)
    numbers = [np.random.default_rng([seed, row]).random(tokens) for row in range(len(prompts_BT))]
    points_NB = torch.from_numpy(np.stack(numbers, axis=1)) if numbers else torch.zeros((tokens, 0))
    ids_BT = prompts_BT
    with evaluating(model), torch.no_grad():
        for points_B in points_NB:
            context = ids_BT if longest is None else ids_BT[:, -longest:]
            chosen_B = _chosen(logits_of(model(context))[:, -1].cpu().double(), points_B, temperature, top_k)
            ids_BT = torch.cat([ids_BT, chosen_B.to(ids_BT)[:, None]], dim=1)
    return ids_BT


def _chosen(logits_BV: Tensor, points_B: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The token (B,) at which the cumulative probability passes a point of [0, 1)."""
    if temperature == 0:
        return logits_BV.argmax(dim=1)
    if top_k is not None and top_k < logits_BV.shape[1]:
        values, kept = logits_BV.topk(top_k, dim=1)
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter(1, kept, values)
    sums_BV = F.softmax(logits_BV / temperature, dim=1).cumsum(dim=1)
    # Rounding must not carry a point past the last token with any mass.
    points_B = torch.minimum(points_B * sums_BV[:, -1], torch.nextafter(sums_BV[:, -1], torch.tensor(0.0).double()))
    return torch.searchsorted(sums_BV, points_B[:, None], right=True)[:, 0]
