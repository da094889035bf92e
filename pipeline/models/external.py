"""Models of other libraries, when they are installed: ``timm:name`` and ``hf:path``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import ConfigError, ModelError, first_line
from pipeline.references import call, optional


def timm_model(name: str, arguments: Mapping[str, Any], *, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """``timm.create_model(name, ...)`` with random weights, or timm's own with ``pretrained=true``.

    A pretrained model keeps its head: one for other classes is refused by ``check_model`` instead of being replaced
    by a random one.
    """
    library = optional("timm", "vision", f"timm:{name}")
    if "checkpoint_path" in arguments:
        raise ConfigError(f"timm:{name}: name weights with --weights, not with checkpoint_path")
    given = {"in_chans": input_shape[0]} | dict(arguments)
    if not given.get("pretrained"):
        given.setdefault("num_classes", classes)
    if not library.is_model(name.partition(".")[0]):
        close = ", ".join(library.list_models(f"*{name.partition('.')[0][:6]}*")[:8])
        raise ConfigError(f"timm has no model {name!r}" + (f"; it has {close}, ..." if close else ""))
    try:
        model: nn.Module = library.create_model(name, **given)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"timm:{name} cannot be built: {first_line(error)}") from error
    return model


def transformers_model(path: str, arguments: Mapping[str, Any], *, classes: int) -> nn.Module:
    """An image classifier of transformers from a local folder, or from the hub by name.

    ``pretrained=false`` builds the architecture of its config with random weights. No code of the folder is run and
    no pickled weights are read. Raises ModelError: nothing there, another number of classes, a multi-label head, a
    checkpoint without all the weights.
    """
    library = optional("transformers", "hf", f"hf:{path}")
    given = dict(arguments)
    pretrained = given.pop("pretrained", True)
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not local and path.startswith((".", "/", "~")):
        raise ModelError(f"hf:{path}: there is no folder {folder.absolute()}")
    source = str(folder) if local else path
    offline = {"local_files_only": True} if local else {}
    try:
        config = library.AutoConfig.from_pretrained(source, trust_remote_code=False, **offline)
        _check_config(path, config, classes)
        kind = library.AutoModelForImageClassification
        if not pretrained:
            return call(kind.from_config, {"config": config, **given}, f"hf:{path}")  # type: ignore[no-any-return]
        model, report = kind.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **offline, **given
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, (ModelError, ConfigError)):
            raise
        hub = "" if local else " (no such folder here, so the hub was asked" + _offline_note() + ")"
        raise ModelError(f"hf:{path} cannot be loaded{hub}: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"hf:{path} lacks {len(missing)} weights, among them {', '.join(missing[:3])}: they would be random. "
            f"Name a checkpoint of a fine-tuned classifier"
        )
    model.float()
    return model  # type: ignore[no-any-return]


def _check_config(path: str, config: Any, classes: int) -> None:
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ModelError(
            f"hf:{path} is a multi-label (sigmoid) classifier: its classes do not exclude each other, and soft labels "
            f"are kept as one distribution per example. Multi-label teachers are not supported yet"
        )
    found = getattr(config, "num_labels", None)
    if found is not None and found != classes:
        raise ModelError(f"hf:{path} has {found} classes; the dataset has {classes}")


def _offline_note() -> str:
    return ", but HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
