"""Devices by name: what is there, what is not, what is no device."""

from __future__ import annotations

import pytest
import torch

from pipeline.devices import resolve_device
from pipeline.errors import ConfigError


@pytest.mark.parametrize("name", ["gpu", "meta", "cpu:x", ""])
def test_what_is_no_device_of_ours_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="--device should be one of auto, cpu, cuda, mps or cuda:N"):
        resolve_device(name)


def test_a_device_of_several_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="cuda:2 was asked for"):
        resolve_device("cuda:2")


def test_cuda_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda was asked for"):
        resolve_device("cuda")
    assert resolve_device("cpu").type == "cpu"


def test_a_gpu_is_kept_from_rounding_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    resolve_device("cpu")
    assert torch.backends.cudnn.allow_tf32
    resolve_device("cuda")
    assert not torch.backends.cudnn.allow_tf32
