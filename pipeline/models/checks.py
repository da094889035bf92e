"""What a teacher or a student must be before work is spent on it: finite logits of the right classes, repeatable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line

_PROBABILITIES = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, an output with ``.logits``, a dict with "logits", or a tuple's first.

    Raises ModelError for anything else.
    """
    found = output
    if not isinstance(found, Tensor):
        found = getattr(output, "logits", None)
    if found is None and isinstance(output, dict):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(f"a model should return logits, or an output with .logits; found {type(output).__name__}")
    return found


def frozen(model: nn.Module) -> nn.Module:
    """The model itself, in evaluation mode and without gradients: batch norm and dropout at rest."""
    return model.eval().requires_grad_(False)


def check_model(
    model: nn.Module,
    *,
    classes: int,
    example_input: Tensor,
    class_names: Sequence[str] | None = None,
    whose: str = "the model",
) -> None:
    """Run a few inputs (B, ...) and look at what comes out; the model's training mode is left as it was.

    Inputs of whole numbers are sequences of tokens (B, T), for which ``check_causal`` looks.

    Raises ModelError: inputs of a shape that it cannot take, another number of classes, values that are not finite,
    probabilities in place of logits (softmax or sigmoid last), two calls that differ, class names in another order
    than its config's.
    """
    if not example_input.is_floating_point():
        check_vocabulary(getattr(model, "tokens", None), class_names, whose)
        check_causal(model, vocabulary=classes, example_ids_BT=example_input, whose=whose)
        return
    own_names = _config_names(model)
    if own_names and class_names and sorted(own_names) == sorted(class_names):
        # Other words for the classes are no mistake in themselves ("tabby" for "n02123045"); another order is.
        check_class_names(own_names, class_names, whose)
    with evaluating(model):
        logits, last = _run(model, example_input, whose)
        if logits.ndim != 2 or logits.shape[0] != len(example_input) or logits.shape[1] != classes:
            raise ModelError(
                f"{whose} should give logits of shape ({len(example_input)}, {classes}), one per class of the dataset; "
                f"found {tuple(logits.shape)}"
            )
        values = logits.detach().float()
        bad = int((~torch.isfinite(values)).any(1).sum())
        if bad:
            raise ModelError(f"{whose} gave NaN or infinite logits for {bad} of {len(values)} examples")
        _check_logits(values, last, whose)
        _check_repeatable(model, example_input, values, whose)


def check_causal(
    model: nn.Module, *, vocabulary: int, example_ids_BT: Tensor, whose: str = "the model", most: int = 64
) -> None:
    """``check_model`` for a causal language model, on the first ``most`` tokens of a few sequences (B, T) int64.

    Raises ModelError: sequences that it cannot take, logits that are not (B, T, V) or not finite, probabilities, two
    calls that differ, logits that a later token changes, or that padding on the right changes, up to rounding.
    """
    ids_BT = example_ids_BT[:, :most]
    batch, length = ids_BT.shape
    with evaluating(model):
        logits_BTV, last = _run(model, ids_BT, whose)
        if tuple(logits_BTV.shape) != (batch, length, vocabulary):
            raise ModelError(
                f"{whose} should give logits of shape ({batch}, {length}, {vocabulary}) for {length} tokens, one per "
                f"token of the dataset's vocabulary; found {tuple(logits_BTV.shape)}. A model of another vocabulary "
                f"needs data of its own tokenizer (softlabels tokenize)"
            )
        values_BTV = logits_BTV.detach().float()
        bad = int((~torch.isfinite(values_BTV)).any(2).sum())
        if bad:
            raise ModelError(f"{whose} gave NaN or infinite logits at {bad} of {batch * length} positions")
        _check_logits(values_BTV.flatten(0, 1), last, whose)
        _check_repeatable(model, ids_BT, values_BTV, whose)
        cut = (length + 1) // 2
        if cut == length:
            return
        # Of the largest logit. The same shape is computed alike; another may take another algorithm, or TF32.
        narrow, elsewhere = logits_BTV.dtype in (torch.bfloat16, torch.float16), logits_BTV.device.type != "cpu"
        alike, reshaped = (0.03, 0.1) if narrow else (1e-4, 0.02 if elsewhere else 1e-4)
        largest = float(values_BTV.abs().max())
        other_BT = torch.cat([ids_BT[:, :cut], (ids_BT[:, cut:] + 1) % vocabulary], dim=1)
        padded_BT = torch.cat([ids_BT[:, :cut], torch.zeros_like(ids_BT[:, cut:])], dim=1)
        with torch.no_grad():
            other, padded, alone = (
                logits_of(model(ids))[:, :cut].float() for ids in (other_BT, padded_BT, ids_BT[:, :cut])
            )
    gap = float((other - values_BTV[:, :cut]).abs().max())
    if gap > alike * largest:
        raise ModelError(
            f"{whose} is not causal: other tokens from position {cut} on changed its logits before that (by up to "
            f"{gap:.2g}). A masked or bidirectional model cannot give the distribution of a next token"
        )
    gap = float((padded - alone).abs().max())
    if gap > reshaped * largest:
        raise ModelError(
            f"{whose} gave other logits for {cut} tokens when {length - cut} of padding stood on their right (by up to "
            f"{gap:.2g}): its positions or its mask should not depend on the length of the batch"
        )


def _check_repeatable(model: nn.Module, example_input: Tensor, values: Tensor, whose: str) -> None:
    """Raise ModelError when ``model`` gives other logits than ``values`` (float32) the second time."""
    with torch.no_grad():
        again = logits_of(model(example_input)).float()
    # Exactly on a CPU; an accelerator may choose another algorithm the second time, and rounds differently then.
    gap = float((values - again).abs().max())
    if gap > (0.0 if values.device.type == "cpu" else 0.01 * float(values.abs().max())):
        raise ModelError(
            f"{whose} gave different logits for the same inputs in evaluation mode (by up to {gap:.2g}): something in "
            f"it stays random, such as a functional dropout without training=self.training"
        )


def check_vocabulary(found: Sequence[str] | None, expected: Sequence[str] | None, whose: str) -> None:
    """Raises ModelError when the tokens of a model and of the data are both known and differ, in number order.

    A model that knows more tokens than the data, after those of the data, is padded or has added ones: it may.
    """
    if found is None or expected is None or list(found[: len(expected)]) == list(expected):
        return
    both = zip(found, expected, strict=False)
    first = next((n for n, (a, b) in enumerate(both) if a != b), min(len(found), len(expected)))
    theirs, ours = (repr(names[first]) if first < len(names) else "nothing" for names in (found, expected))
    raise ModelError(
        f"{whose} knows another vocabulary than the dataset ({len(found):,} tokens against {len(expected):,}): token "
        f"{first} is {theirs} for it and {ours} in the dataset, so that soft labels over one cannot teach the other. "
        f"Tokenize the text with its own tokenizer (softlabels tokenize), for teacher and student alike"
    )


def check_class_names(found: Sequence[str] | None, expected: Sequence[str] | None, whose: str) -> None:
    """Raises ModelError when both orders of class names are known and differ."""
    if found is None or expected is None or list(found) == list(expected):
        return
    if sorted(found) == sorted(expected):
        first = next(n for n, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        raise ModelError(
            f"{whose} has the dataset's classes in another order: class {first} is {found[first]!r} for it and "
            f"{expected[first]!r} in the dataset. Reorder the dataset's class names"
        )
    if set(found) < set(expected) and len(found) < len(expected):
        raise ModelError(
            f"{whose} knows {len(found)} of the dataset's {len(expected)} classes: where a teacher may, name them with "
            f"--classes ({','.join(found[:3])}{',...' if len(found) > 3 else ''})"
        )
    strange = [name for name in found if name not in set(expected)]
    raise ModelError(
        f"{whose} knows other classes than the dataset: {len(found)} against {len(expected)}"
        + (f", among them {', '.join(map(repr, strange[:3]))}" if strange else "")
    )


def _config_names(model: nn.Module) -> list[str] | None:
    """Class names of a transformers config, in order."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict):
        return None
    try:
        ordered = [str(names[n]) for n in range(len(names))]
    except KeyError:
        return None
    return ordered


def _run(model: nn.Module, x: Tensor, whose: str) -> tuple[Tensor, str]:
    """The logits, and the name of the operation or module that made them."""
    made: list[tuple[str, Any]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        made.append((type(module).__name__.lower(), output))

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        with torch.enable_grad():  # so that the last operation has a name
            probe = x.detach().clone().requires_grad_(x.is_floating_point())
            logits = logits_of(model(probe))
    except ModelError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{whose} cannot take inputs of shape {tuple(x.shape)} (batch first): {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    operation = logits.grad_fn.name() if logits.grad_fn is not None else ""
    if operation in _PROBABILITIES:
        return logits, _PROBABILITIES[operation]
    last = [name for name, output in made if output is logits and name in ("sigmoid", "softmax")]
    return logits, last[-1] if last else ""


def _check_logits(values: Tensor, last: str, whose: str) -> None:
    between = bool(((values >= 0) & (values <= 1)).all())
    if last == "sigmoid":
        raise ModelError(
            f"{whose} ends in a sigmoid: it is multi-label, its classes do not exclude each other. Soft labels are "
            f"kept as one distribution per example; multi-label teachers are not supported yet"
        )
    sums_to_one = values.shape[1] > 1 and torch.allclose(values.sum(1), torch.ones(len(values)).to(values), atol=1e-3)
    if last == "softmax" or (between and sums_to_one):
        raise ModelError(f"{whose} gives probabilities (they sum to 1); it should give logits, before its softmax")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; each of its modules goes back to the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
