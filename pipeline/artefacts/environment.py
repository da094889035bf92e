"""The machine that figures were measured on, as JSON values that go beside them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from pipeline.artefacts.latency import processor_name

FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""What decides how fast low precision is: vectors, int8 dot products (VNNI; asimddp on ARM), matrix units."""

_PACKAGES = ("torch", "numpy", "onnxruntime", "executorch", "torchao", "openvino")


def environment(threads: int | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Processor, cores, flags that matter, ``threads`` as measured with, versions, and how busy the machine is.

    ``flags`` is None, and ``load`` (running processes over 1, 5 and 15 minutes) too, where the system does not tell.
    """
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": _usable(),
        "flags": _flags(cpuinfo),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": _versions(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def _usable() -> int | None:
    """Cores that this process may use: a container often gets fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _flags(cpuinfo: Path) -> list[str] | None:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86; ARM
            there = set(value.split())
            return [flag for flag in FLAGS if flag in there]
    return None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
