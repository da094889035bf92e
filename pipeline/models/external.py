"""Models of other libraries, when they are installed: ``timm:name`` and ``hf:path``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError, ModelError, first_line
from pipeline.models.causal import Narrowed
from pipeline.references import call, optional

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDEST_PADDING = 1024
"""A head that is wider than a vocabulary by more than this is one of another vocabulary, not a padded one."""


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


def transformers_model(path: str, arguments: Mapping[str, Any], *, classes: int, discrete: bool = False) -> nn.Module:
    """A model of transformers from a local folder, or from the hub by name.

    An image classifier, or a causal language model for ``discrete`` data, whose vocabulary ``classes`` is then; one
    padded to a wider head comes ``Narrowed``. ``pretrained=false`` builds the architecture of its config with random
    weights, ``dtype=bfloat16`` (or float16) keeps them so instead of in float32. No code of the folder is run and no
    pickled weights are read.

    Raises ConfigError for another dtype; ModelError: nothing there, another number of classes or vocabulary, a
    multi-label head, a checkpoint without all the weights.
    """
    library = optional("transformers", "hf", f"hf:{path}")
    given = dict(arguments)
    pretrained = given.pop("pretrained", True)
    precision = given.pop("dtype", "float32")
    if precision not in PRECISIONS:
        raise ConfigError(f"hf:{path}: dtype should be {', '.join(PRECISIONS)}; found {precision!r}")
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not local and path.startswith((".", "/", "~")):
        raise ModelError(f"hf:{path}: there is no folder {folder.absolute()}")
    source = str(folder) if local else path
    offline = {"local_files_only": True} if local else {}
    missing: list[str] = []
    try:
        config = library.AutoConfig.from_pretrained(source, trust_remote_code=False, **offline)
        (_check_vocabulary if discrete else _check_config)(path, config, classes)
        kind = library.AutoModelForCausalLM if discrete else library.AutoModelForImageClassification
        if not pretrained:
            model = call(kind.from_config, {"config": config, **given}, f"hf:{path}")
        else:
            model, report = kind.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **offline, **given
            )
            missing = sorted(report["missing_keys"])
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, (ModelError, ConfigError)):
            raise
        hub = "" if local else " (no such folder here, so the hub was asked" + _offline_note() + ")"
        raise ModelError(f"hf:{path} cannot be loaded{hub}: {first_line(error)}") from error
    if missing:
        raise ModelError(
            f"hf:{path} lacks {len(missing)} weights, among them {', '.join(missing[:3])}: they would be random. "
            f"Name a checkpoint of a {'causal language model' if discrete else 'fine-tuned classifier'}"
        )
    model.float()
    for parameter in model.parameters():  # not the buffers: rotary frequencies lose positions in bfloat16
        parameter.data = parameter.data.to(PRECISIONS[precision])
    return _causal(path, model, classes, folder if local else None) if discrete else model


def _causal(path: str, model: nn.Module, vocabulary: int, folder: Path | None) -> nn.Module:
    """``model`` without a cache of keys and values, narrowed to ``vocabulary``, and the tokens that it knows if any."""
    model.config.use_cache = False  # type: ignore[union-attr]
    output = model.get_output_embeddings()  # type: ignore[operator]
    rows = len(output.weight) if output is not None else vocabulary
    _check_width(path, rows, vocabulary)
    found = Narrowed(model, vocabulary) if rows > vocabulary else model
    tokens = _tokens_of(folder / "tokenizer.json") if folder is not None else None
    if tokens is not None:
        found.tokens = tokens  # type: ignore[assignment]
    return found


def _check_vocabulary(path: str, config: Any, vocabulary: int) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"hf:{path} is an encoder and a decoder: a causal language model is wanted, a decoder alone")
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int):
        _check_width(path, rows, vocabulary)


def _check_width(path: str, rows: int, vocabulary: int) -> None:
    """Raise ModelError for a head that cannot be of this vocabulary: smaller, or wider than padding makes it."""
    if vocabulary <= rows <= vocabulary + WIDEST_PADDING:
        return
    raise ModelError(
        f"hf:{path} gives {rows:,} logits; the dataset's tokenizer has {vocabulary:,} tokens: they are of different "
        f"vocabularies, so that a token number means another text to each, and soft labels over one cannot teach the "
        f"other. Tokenize the text with this model's own tokenizer (softlabels tokenize), for teacher and student "
        f"alike. A head may be wider, padded by up to {WIDEST_PADDING:,}, and never smaller"
    )


def _tokens_of(path: Path) -> tuple[str, ...] | None:
    """The tokens of a tokenizer.json in the order of their numbers; None where it does not say them plainly."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = told["model"]["vocab"]
        pairs = {int(number): str(token) for token, number in vocabulary.items()}
        pairs |= {int(added["id"]): str(added["content"]) for added in told.get("added_tokens") or ()}
        return tuple(pairs[number] for number in range(len(pairs)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


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
