"""The configuration that DistillKit's compressed logits were written with, found to be one that its code takes.

Source: github.com/arcee-ai/DistillKit at a61c2e7, distillkit/compression/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import repr as shown
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import yaml

from pipeline.errors import ConfigError, some

MOST_BITS = 62
MOST_K = 65_536
SPECIAL = ("sqrt", "exp")
MOST_POWER = 64


@dataclass(frozen=True)
class Float:
    """A float format by its ``name``, little-endian; values are held in float64."""

    name: str
    bytes: ClassVar[Mapping[str, int]] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return self.bytes[self.name]

    def __or__(self, other: Float) -> Float:
        """The format that holds both: float32 where two halves differ."""
        names = {self.name, other.name}
        return self if len(names) == 1 else Float("float64" if "float64" in names else "float32")

    def read(self, packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """(P, n) values out of (P, n * size) bytes."""
        packed = np.ascontiguousarray(packed)
        if self.name == "bfloat16":
            return (packed.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return packed.view(np.dtype(self.name).newbyteorder("<")).astype(np.float64)

    def round(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``values`` rounded to the nearest of this format, ties to even."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.name == "float64":
                return values
            if self.name != "bfloat16":
                return values.astype(self.name).astype(np.float64)
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32)
            found = rounded.view(np.float32).astype(np.float64)
            return np.where(np.isfinite(values), found, values)


@dataclass(frozen=True)
class Bin:
    """``num_elements`` residuals, quantised to ``element_bits`` bits, times a scale."""

    scale_dtype: Float
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class Compression:
    """Fields by the names of DistillKit's ``DistributionQuantizationConfig``. ``d`` is the vocabulary."""

    d: int
    k: int
    exact_k: int
    residual_bins: tuple[Bin, ...]
    exact_dtype: Float = Float("float32")
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: Float = Float("float32")
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def index_bits(self) -> int:
        """Bits of a token id: DistillKit takes the logarithm in float32."""
        return int(np.ceil(np.log2(np.float32(self.d))))

    @property
    def index_bytes(self) -> int:
        """Bytes of the ids of a position."""
        return -(-self.k * self.index_bits // 8)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of each piece of a position's log-probabilities: exact, coefficients, scale and numbers of each bin."""
        bins = [(b.scale_dtype.size, -(-b.element_bits * b.num_elements // 8)) for b in self.residual_bins]
        head = (self.exact_k * self.exact_dtype.size, len(self.polynomial_terms) * self.term_dtype.size)
        return (*head, *(width for pair in bins for width in pair))

    @property
    def logprob_bytes(self) -> int:
        """Bytes of the log-probabilities of a position."""
        return sum(self.widths)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def read(cls, path: Path) -> Compression:
        """The configuration of a ``compression_config.yaml``. Raises ConfigError for what is none."""
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read as DistillKit's compression_config.yaml: {error}") from error
        try:
            return cls.parse(value)
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None

    @classmethod
    def parse(cls, value: Any) -> Compression:
        """The configuration out of plain JSON, perhaps under ``logprob_compressor``. Raises ConfigError, with all
        problems, for unknown fields and for values that DistillKit refuses or cannot read back itself."""
        while isinstance(value, dict) and set(value) == {"logprob_compressor"}:
            value = value["logprob_compressor"]
        if not isinstance(value, dict):
            raise ConfigError(f"a compression configuration should be a mapping; found {shown(value)}")
        if "polynomial_degree" in value:
            raise ConfigError("this is a configuration of DistillKit's legacy format, which keeps no normaliser")
        unknown = sorted(str(name) for name in value if name not in {field.name for field in fields(cls)})
        problems = [f"a compression configuration has no {some(unknown)}"] if unknown else []
        reader = _Reader(value, problems)
        d, k = reader.whole("d", 2, 1 << 31), reader.whole("k", 1, MOST_K)
        exact_k = reader.whole("exact_k", 0, MOST_K)
        found = cls(
            d=d,
            k=k,
            exact_k=exact_k,
            residual_bins=reader.bins(),
            exact_dtype=reader.float("exact_dtype"),
            polynomial_terms=reader.terms(),
            term_dtype=reader.float("term_dtype"),
            delta_encoding=reader.flag("delta_encoding", True),
            error_diffusion=reader.flag("error_diffusion", False),
            normalize_t=reader.flag("normalize_t", False),
        )
        if problems:
            raise ConfigError(problems)
        binned = sum(bin.num_elements for bin in found.residual_bins)
        if not exact_k <= k <= d:
            raise ConfigError(f"exact_k should be at most k, and k at most d; found {exact_k}, {k}, {d:,}")
        if binned > k - exact_k:
            raise ConfigError(f"residual_bins hold {binned} elements; k - exact_k is {k - exact_k}")
        if exact_k < k and not found.polynomial_terms and not found.residual_bins:
            raise ConfigError("beyond exact_k, values need polynomial_terms or residual_bins")
        return found


@dataclass(frozen=True)
class _Reader:
    """Fields of a mapping; what is wrong goes to ``problems``, and something harmless comes back."""

    value: Mapping[str, Any]
    problems: list[str]

    def whole(self, name: str, least: int, most: int) -> int:
        found = self.value.get(name)
        if type(found) is not int or not least <= found <= most:
            self.problems.append(f"{name} should be a whole number of {least} to {most:,}; found {shown(found)}")
            return least
        return found

    def flag(self, name: str, default: bool) -> bool:
        found = self.value.get(name, default)
        if not isinstance(found, bool):
            self.problems.append(f"{name} should be true or false; found {shown(found)}")
            return default
        return found

    def float(self, name: str, default: str = "float32") -> Float:
        found = self.value.get(name, default)
        if not isinstance(found, str) or found not in Float.bytes:
            self.problems.append(f"{name} should be one of {', '.join(Float.bytes)}; found {shown(found)}")
            return Float(default)
        return Float(found)

    def terms(self) -> tuple[int | str, ...]:
        found = self.value.get("polynomial_terms") or []
        good = [t for t in found if t in SPECIAL or (type(t) is int and 0 <= t <= MOST_POWER)] if _plain(found) else []
        if not _plain(found) or len(good) < len(found) or len(found) > MOST_POWER:
            what = f"powers of 0 to {MOST_POWER}, {' or '.join(SPECIAL)}, at most {MOST_POWER} of them"
            self.problems.append(f"polynomial_terms should be a list of {what}; found {shown(found)}")
        return tuple(good)

    def bins(self) -> tuple[Bin, ...]:
        found: Any = self.value.get("residual_bins")
        names = {field.name for field in fields(Bin)}
        if not _plain(found) or len(found) > MOST_K or not all(isinstance(b, dict) and set(b) == names for b in found):
            what = f"mappings of {', '.join(sorted(names))}"
            self.problems.append(f"residual_bins should be a list of {what}, perhaps empty; found {shown(found)}")
            return ()
        readers = [_Reader(item, self.problems) for item in found]
        return tuple(
            Bin(r.float("scale_dtype"), r.whole("element_bits", 1, MOST_BITS), r.whole("num_elements", 1, MOST_K))
            for r in readers
        )


def _plain(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_K and all(isinstance(v, str | int | dict) for v in value)


def _json(value: Any) -> Any:
    if isinstance(value, Float):
        return value.name
    if isinstance(value, Bin):
        return {field.name: _json(getattr(value, field.name)) for field in fields(value)}
    return [_json(item) for item in value] if isinstance(value, tuple) else value
