"""Models by name: small built-in ones, one's own by ``module:factory``, those of timm and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models.builtin import CAUSAL, FAMILIES
from pipeline.models.external import timm_model, transformers_model
from pipeline.models.hydra import PREFIX, Hydra
from pipeline.references import call, resolve

CHOICES = "cnn-WIDTH, resnet-WIDTH, mlp-WIDTH, gpt-WIDTH, timm:NAME, hf:PATH or module:factory"
ADVICE = "Use gpt-WIDTH, hf:PATH or a causal language model of your own"


def build_model(
    reference: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    classes: int,
    input_shape: tuple[int, ...],
    discrete: bool = False,
) -> nn.Module:
    """The model that a reference names, with random weights, or with its own where a library brings them.

    ``discrete`` data are sequences of token numbers: ``classes`` is the vocabulary then, ``input_shape`` the longest
    sequence (T,), and ``hf:PATH`` a causal language model.

    A ``module:factory`` is called with ``arguments``, and with ``classes`` and ``input_shape`` where it has
    parameters of those names. Raises ConfigError for a reference or argument that is not known, ModelError for a
    model that cannot take the dataset's inputs.
    """
    given = dict(arguments or {})
    family, dash, width = reference.partition("-")
    if family in FAMILIES and dash and ":" not in reference:
        if not width.isdecimal() or int(width) < 1:
            raise ConfigError(f"{family}-WIDTH needs a whole number of 1 or more; found {reference!r}")
        if discrete and family not in CAUSAL:
            raise ModelError(f"{reference} takes no token numbers, which this dataset's examples are. {ADVICE}")
        offered = {"classes": classes, "input_shape": tuple(input_shape)}
        return call(FAMILIES[family], {"width": int(width)} | given | offered, reference)  # type: ignore[no-any-return]
    source, colon, rest = reference.partition(":")
    if not colon or not rest:
        raise ConfigError(f"a model should be {CHOICES}; found {reference!r}")
    if discrete and source in (PREFIX, "timm"):
        gives = "takes images" if source == "timm" else "gives one distribution per example"
        raise ModelError(f"{reference} {gives}; this dataset's examples are sequences of tokens. {ADVICE}")
    if source == PREFIX:
        return _with_heads(rest, given, classes, tuple(input_shape))
    if source == "timm":
        return timm_model(rest, given, classes=classes, input_shape=tuple(input_shape))
    if source == "hf":
        return transformers_model(rest, given, classes=classes, discrete=discrete)
    return _own(reference, given, classes, tuple(input_shape))


def _with_heads(reference: str, arguments: dict[str, Any], classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """``hydra:MODEL`` with ``heads=M`` among the arguments; the others are the model's."""
    heads = arguments.pop("heads", None)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ConfigError(f"{PREFIX}:{reference} needs a number of heads of 1 or more (heads=3); found {heads!r}")
    return Hydra(build_model(reference, arguments, classes=classes, input_shape=input_shape), heads, classes)


def _own(reference: str, arguments: Mapping[str, Any], classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    found = resolve(reference, "model")
    factory = inspect.isclass(found) or (callable(found) and not isinstance(found, nn.Module))
    offered = {"classes": classes, "num_classes": classes, "input_shape": input_shape}
    model = call(found, arguments, reference, offered) if factory else found
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference} should make a torch.nn.Module; found {type(model).__name__}")
    return model


def untrained(reference: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """The problem with a teacher that is named without weights, where nothing else can bring them."""
    source, _, rest = reference.partition(":")
    if not rest or (source == "timm" and not arguments.get("pretrained")):
        hint = " or --teacher-args pretrained=true" if rest else ""
        yield f"--teacher {reference} has random weights: name its --weights{hint}"
