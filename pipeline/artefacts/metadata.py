"""What an artefact says of itself: written into the file, read back without running anything.

Nothing in it changes between two makings of the same thing: no times, no hosts, no paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artefacts.executorch_file import text_of
from pipeline.artefacts.kinds import ONNX, PT2, kind_of
from pipeline.artefacts.onnx_reading import MARK, properties, read_proto
from pipeline.artefacts.pt2_archive import extra_of
from pipeline.errors import ModelError
from pipeline.models import weights

VERSION = 1
"""Version of these fields, under the key ``softlabels``."""


@dataclass(frozen=True)
class Step:
    """One step of making the model: what was done, in words, and the options it was done with (JSON values)."""

    what: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a model comes from. None is what nobody knows, or what does not apply.

    ``cache``: the identity digest of the cache of soft labels; ``teacher``: as the cache's manifest names it
    (``reference``, ``args``, ``state``, ``precision``); ``run``: name of the training run, ``config`` the digest of
    its options, ``seed``.
    """

    cache: str | None = None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    config: str | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ArtefactMetadata:
    """Everything an artefact carries besides its weights. ``made_by``: "softlabels" and its version.

    ``discrete``: inputs are token sequences, ``input_shape`` the longest of the data that it was made for, and
    ``class_names`` the tokens.
    """

    class_names: tuple[str, ...]
    preprocessing: str | None
    input_shape: tuple[int, ...]
    lineage: Lineage = field(default_factory=Lineage)
    steps: tuple[Step, ...] = ()
    made_by: str | None = None
    discrete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for ``export_onnx``, ``export_pt2``, ``export_executorch`` and ``save_weights``."""
        return {
            MARK: VERSION,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing,
            "input_shape": list(self.input_shape),
            "lineage": {**vars(self.lineage), "teacher": dict(self.lineage.teacher)},
            "steps": [{"what": step.what, "options": dict(step.options)} for step in self.steps],
            "made_by": self.made_by,
            **({"discrete": True} if self.discrete else {}),
        }

    @classmethod
    def read(cls, found: Mapping[str, Any], where: str = "the metadata") -> ArtefactMetadata:
        """The metadata in JSON values; fields that are not known are passed over.

        Raises ModelError: not written by this project, by a later release, or fields of other types.
        """
        version = found.get(MARK)
        if not isinstance(version, int) or isinstance(version, bool):
            raise ModelError(f"{where} should be written by Softlabels; it has no version under {MARK!r}")
        if version > VERSION:
            raise ModelError(f"{where} is of version {version}; this release knows {VERSION}. Use a later one")
        lineage, steps = _of(dict, found, "lineage", where), _of(list, found, "steps", where)
        if not all(isinstance(step, dict) for step in steps):
            raise ModelError(f"{where} should list its steps as objects")
        names, shape = _of(list, found, "class_names", where), _of(list, found, "input_shape", where)
        if not all(isinstance(name, str) for name in names) or not all(type(size) is int for size in shape):
            raise ModelError(
                f"{where} should name classes by texts and sizes by numbers; found {names!r} and {shape!r}"
            )
        return cls(
            class_names=tuple(names),
            preprocessing=_maybe(str, found, "preprocessing", where),
            input_shape=tuple(shape),
            lineage=Lineage(
                cache=_maybe(str, lineage, "cache", where),
                teacher=_of(dict, lineage, "teacher", where),
                run=_maybe(str, lineage, "run", where),
                config=_maybe(str, lineage, "config", where),
                seed=_maybe(int, lineage, "seed", where),
            ),
            steps=tuple(Step(_of(str, step, "what", where), _of(dict, step, "options", where)) for step in steps),
            made_by=_maybe(str, found, "made_by", where),
            discrete=_of(bool, found, "discrete", where),
        )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata in an ``.onnx``, ``.pt2``, ``.pte`` or ``.safetensors`` file, {} for files of others.

    Nothing is unpickled, evaluated or run, and no weights are read (a ``.pte`` is asked for its own text, by the
    runtime). ``ArtefactMetadata.read`` makes sense of it. Raises ModelError for other kinds and damaged files.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        return weights.read_metadata(path)
    kind = kind_of(path)
    if kind == ONNX:
        return properties(read_proto(path))
    return extra_of(path) if kind == PT2 else text_of(path)


def _of(kind: type, found: Mapping[str, Any], name: str, where: str) -> Any:
    value = found.get(name, kind())
    if not isinstance(value, kind):
        raise ModelError(f"{where}: {name} should be a {kind.__name__}; found {value!r}")
    return value


def _maybe(kind: type, found: Mapping[str, Any], name: str, where: str) -> Any:
    value = found.get(name)
    return value if value is None else _of(kind, found, name, where)
