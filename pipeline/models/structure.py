"""The shape of a pruned model as JSON, so that it can be stored without pickle and built from the original again.

What a module keeps of its shape are plain attributes: channels, heads, normalised shapes. Those that pruning changed
are named here, with their values; the tensors come from the state. The JSON may come from strangers: it sets plain
attributes that exist, to values of the type they have, and can do nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line, some
from pipeline.models.checks import logits_of

Structure = dict[str, dict[str, Any]]


def structure_of(original: nn.Module, pruned: nn.Module) -> Structure:
    """By module name, the attributes of ``pruned`` that differ from those of ``original``: JSON values.

    Integers, and tuples of integers (as lists) only: pruning changes nothing else. Raises ModelError when the two have
    other modules.
    """
    theirs = dict(original.named_modules())
    found: Structure = {}
    names = {name for name, _ in pruned.named_modules()}
    if names != set(theirs):
        raise ModelError(
            f"a pruned model should have the modules of the original; {some(sorted(names ^ set(theirs)))} differ"
        )
    for name, module in pruned.named_modules():
        if type(module) is not type(theirs[name]):
            raise ModelError(f"{name} should be a {type(theirs[name]).__name__}; found {type(module).__name__}")
        changed = {
            attribute: list(value) if isinstance(value, tuple) else value
            for attribute, value in sorted(_plain(module).items())
            if value != getattr(theirs[name], attribute, None)
        }
        if changed:
            found[name] = changed
    return found


def with_structure(
    original: nn.Module, structure: Mapping[str, Any], state: Mapping[str, Tensor], example: Tensor | None = None
) -> nn.Module:
    """A copy of ``original`` with the attributes of ``structure`` and the tensors of ``state``, in eval mode.

    ``structure`` is that of ``structure_of``, read from JSON. Tied parameters stay tied. With ``example`` (B, ...) the
    model is run on it, and has to give as many finite logits as the original, as its attributes may contradict its
    tensors. Raises ModelError: a module or attribute that the original does not have, a value of another type or
    larger, missing, unexpected or misshapen tensors, a model that does not run.
    """
    model = copy.deepcopy(original).cpu().eval()
    modules = dict(model.named_modules())
    if not isinstance(structure, Mapping):
        raise ModelError(f"a structure should be a JSON object of objects; found {type(structure).__name__}")
    for name, attributes in structure.items():
        if name not in modules or not isinstance(attributes, Mapping):
            raise ModelError(f"a structure should give attributes of modules of the model; found {name!r}")
        own = _plain(modules[name])
        for attribute, value in attributes.items():
            if attribute not in own:
                raise ModelError(f"{name} has no plain attribute {attribute!r}, so that none can be set")
            setattr(modules[name], attribute, _checked(value, own[attribute], f"{name}.{attribute}"))
    _fill(model, state)
    if example is not None:
        _run(model, original, example)
    return model


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes that are integers or tuples of integers; names that are not private."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and (type(value) is int or _is_shape(value))
    }


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(type(each) is int for each in value)


def _checked(value: Any, old: Any, where: str) -> Any:
    """``value`` as the type of ``old``: an integer, or a tuple of as many. Pruning only makes numbers smaller.

    So a padding or a number of groups cannot be blown up to what no memory holds.
    """
    many = isinstance(old, tuple)
    numbers, limits = (value, old) if many else ([value], [old])
    if (
        not isinstance(numbers, list)
        or len(numbers) != len(limits)
        or not all(type(each) is int and 0 <= each <= limit for each, limit in zip(numbers, limits, strict=True))
    ):
        raise ModelError(f"{where} should be like {old!r}, and no larger; found {str(value)[:80]!r}")
    return tuple(value) if many else value


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer the tensor of its name, of whatever shape, of the same type and dimensions."""
    wanted = model.state_dict(keep_vars=True)
    missing, unexpected = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    if missing or unexpected:
        raise ModelError(
            f"the state should have the tensors of the model: {len(missing)} missing ({some(missing)}), "
            f"{len(unexpected)} unexpected ({some(unexpected)})"
        )
    made: dict[int, tuple[str, nn.Parameter]] = {}
    for name, old in wanted.items():
        new = state[name]
        larger = new.ndim != old.ndim or any(n > o for n, o in zip(new.shape, old.shape, strict=True))
        if larger or new.dtype != old.dtype or new.layout != torch.strided or new.is_meta:
            raise ModelError(
                f"{name} should be a dense {old.dtype} tensor no larger than {tuple(old.shape)}; found {new.dtype} "
                f"{tuple(new.shape)}"
            )
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if not isinstance(old, nn.Parameter):
            module._buffers[attribute] = new.detach().clone()
            continue
        first, parameter = made.setdefault(
            id(old), (name, nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad))
        )
        if first != name and not torch.equal(parameter, new):
            raise ModelError(f"{name} and {first} are one tensor in the model; the state has two that differ")
        module._parameters[attribute] = parameter


def _run(model: nn.Module, original: nn.Module, example: Tensor) -> None:
    was_training = original.training
    original.eval()
    try:
        with torch.no_grad():
            expected = logits_of(original(example))
            logits = logits_of(model(example))
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"structure and state do not fit together: {first_line(error)}") from error
    finally:
        original.train(was_training)
    if logits.shape != expected.shape:
        raise ModelError(f"the model should give {tuple(expected.shape)} logits; found {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ModelError("the model built from structure and state gives logits that are not finite")
