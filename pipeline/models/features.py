"""Named intermediate activations of a model, taken by hooks: the hints of a teacher."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def parse_features(texts: Sequence[str]) -> dict[str, str]:
    """Feature names to module paths, from ``name=path`` texts (or ``path`` alone, whose dots become dashes).

    >>> parse_features(["hint=stage2", "encoder.3"])
    {'hint': 'stage2', 'encoder-3': 'encoder.3'}

    Raises ConfigError: a name that is no plain word (it becomes a folder name), or one given twice.
    """
    features: dict[str, str] = {}
    problems = []
    for text in texts:
        name, sign, path = text.partition("=")
        name, path = (name.strip(), path.strip()) if sign else (text.strip().replace(".", "-"), text.strip())
        if not path or not _NAME.fullmatch(name):
            problems.append(f"--features should be name=module, the name of letters, digits, - and _; found {text!r}")
        elif name in features:
            problems.append(f"--features names {name!r} twice")
        features[name] = path
    if problems:
        raise ConfigError(problems)
    return features


class FeatureTap:
    """While the ``with`` lasts, each forward pass leaves the outputs of some modules in ``values``.

    ``features`` maps names to module paths, as ``named_modules`` gives them. Values are the modules' outputs
    themselves, (B, ...), with their gradients; a module called several times leaves its last output. Raises
    ConfigError listing the modules when one is unknown, ModelError when a module did not run or gave no tensor.
    """

    def __init__(self, model: nn.Module, features: Mapping[str, str]) -> None:
        modules = dict(model.named_modules())
        del modules[""]
        problems = []
        for name, path in features.items():
            if path not in modules:
                close = difflib.get_close_matches(path, modules, n=3)
                hint = f" (did you mean {', '.join(close)}?)" if close else ""
                problems.append(f"feature {name}: the model has no module {path!r}{hint}; it has {_listed(modules)}")
        if problems:
            raise ConfigError(problems)
        self.values: dict[str, Tensor] = {}
        self._model = model
        self._modules = {name: modules[path] for name, path in features.items()}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        # Cleared before each pass: a stale value must not pass for this batch's.
        self._handles = [self._model.register_forward_pre_hook(lambda *_: self.values.clear())]
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        self._handles.append(self._model.register_forward_hook(self._check))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found = output
            if not isinstance(found, Tensor):
                found = getattr(output, "last_hidden_state", None)
            if found is None and isinstance(output, (tuple, list)) and output:
                found = output[0]
            if not isinstance(found, Tensor):
                raise ModelError(f"feature {name}: its module gives {type(output).__name__}, which holds no tensor")
            self.values[name] = found

        return hook

    def _check(self, *_: Any) -> None:
        idle = [name for name in self._modules if name not in self.values]
        if idle:
            raise ModelError(f"feature {', '.join(idle)}: the module was not called in the forward pass")


def _listed(modules: Mapping[str, nn.Module], most: int = 40) -> str:
    names = list(modules)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
