"""``hf:path`` for token sequences, on tiny language models made here and kept on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models import (
    build_model,
    check_causal,
    check_model,
    generate,
    load_weights,
    logits_of,
    save_weights,
    split_head,
    state_digest,
)
from pipeline.models.causal import Narrowed
from pipeline.models.macs import count_macs

library = pytest.importorskip("transformers")

V = 60
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHARED = SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0}),
    "llama": ("LlamaConfig", SHARED),
    "qwen2": ("Qwen2Config", SHARED | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", SHARED),
    "gemma2": ("Gemma2Config", SHARED | {"head_dim": 8, "pad_token_id": 0}),
    "granite": ("GraniteConfig", SHARED | {"logits_scaling": 4.0}),
    "cohere": ("CohereConfig", SHARED),
}
CAPPED = ("gemma2", "granite", "cohere")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    library.logging.set_verbosity(logging.CRITICAL)
    library.logging.disable_progress_bar()


def saved(folder: Path, kind: str, vocabulary: int = V, **changes: Any) -> Path:
    torch.manual_seed(0)
    name, given = CONFIGS[kind]
    config = getattr(library, name)(**(given | {"vocab_size": vocabulary, "eos_token_id": 1} | changes))
    model = library.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # as after training: large enough for a cap, or a rounding, to show
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    model.save_pretrained(folder / kind)
    return folder / kind


def built(path: Path, **arguments: Any) -> nn.Module:
    return build_model(f"hf:{path}", arguments, classes=V, input_shape=(12,), discrete=True).eval()


def some_ids(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("padding", [0, 4])
def test_causal_models_from_folders(tmp_path: Path, kind: str, padding: int) -> None:
    path, ids = saved(tmp_path, kind, V + padding), some_ids(2, 12)
    model = built(path)
    check_model(model, classes=V, example_input=ids, class_names=[f"t{n}" for n in range(V)])
    again = library.AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        expected = again(ids).logits[..., :V]
        assert torch.equal(logits_of(model(ids)), expected)
        assert isinstance(model, Narrowed) is bool(padding)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert generate(model, ids[:, :3], tokens=3).shape == (2, 6)
        parts = split_head(model)
        assert (parts is None) is (kind in CAPPED)
        if parts is not None:
            torch.testing.assert_close(parts[1](parts[0](ids)), expected)
    assert count_macs(model, ids) > 12 * 16 * V


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("padding", [0, 4])
def test_training_through_the_parts_trains_the_model(tmp_path: Path, kind: str, padding: int) -> None:
    model, ids = built(saved(tmp_path, kind, V + padding)), some_ids(2, 6)
    parts = split_head(model)
    assert parts is not None
    grads = []
    for logits in (logits_of(model(ids)), parts[0](ids) @ parts[1].weight.T):
        model.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_bfloat16_weights(tmp_path: Path, kind: str) -> None:
    path, ids = saved(tmp_path, kind), some_ids(2, 12)
    model = built(path, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} <= {torch.float32}
    check_causal(model, vocabulary=V, example_ids_BT=ids)
    with pytest.raises(ConfigError, match="dtype should be float32, bfloat16, float16; found 'int8'"):
        built(path, dtype="int8")


def test_a_cap_is_seen_where_logits_are_too_small_to_show_it(tmp_path: Path) -> None:
    model = built(saved(tmp_path, "gemma2", final_logit_softcapping=1e9))
    assert split_head(model) is None


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_tied_weights_are_kept_once_and_come_back(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, kind, V + 4)
    model, other = built(path), built(path, pretrained=False)
    assert state_digest(other) != state_digest(model)
    save_weights(tmp_path / "m.safetensors", model)
    assert len(safetensors.torch.load_file(tmp_path / "m.safetensors")) == len(model.state_dict()) - 1
    load_weights(other, tmp_path / "m.safetensors")
    assert state_digest(other) == state_digest(model)


@pytest.mark.parametrize(("rows", "text"), [(V - 1, "59"), (V + 2000, "2,060")])
def test_other_vocabularies_are_refused(tmp_path: Path, rows: int, text: str) -> None:
    path = saved(tmp_path, "gpt2", rows)
    with pytest.raises(
        ModelError, match=rf"gives {text} logits; the dataset's tokenizer has 60 tokens.*softlabels tok"
    ):
        built(path)


def test_the_tokens_of_its_own_tokenizer_are_compared(tmp_path: Path) -> None:
    path, names = saved(tmp_path, "gpt2"), [f"t{n}" for n in range(V)]
    vocabulary = {name: number for number, name in enumerate(names[:-1])}
    added = [{"id": V - 1, "content": "<end>"}]
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    check_model(built(path), classes=V, example_input=some_ids(1, 8), class_names=[*names[:-1], "<end>"])
    with pytest.raises(ModelError, match="token 59 is '<end>' for it and 't59' in the dataset"):
        check_model(built(path), classes=V, example_input=some_ids(1, 8), class_names=names)
    for text in ("not JSON", "[]", '{"model": {"vocab": [["a", -1.0]]}}', '{"model": {"vocab": {"a": 7}}}'):
        (path / "tokenizer.json").write_text(text)
        check_model(built(path), classes=V, example_input=some_ids(1, 8), class_names=names)


def test_what_is_no_causal_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = library.BertConfig(vocab_size=V, **SIZES)
    library.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is not causal"):
        check_causal(built(tmp_path / "bert"), vocabulary=V, example_ids_BT=some_ids(2, 12))
    library.BartConfig(vocab_size=V).save_pretrained(tmp_path / "bart")
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        built(tmp_path / "bart")
    library.ViTConfig(**SIZES).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="cannot be loaded"):
        built(tmp_path / "vit")


def test_missing_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama")
    weights = safetensors.torch.load_file(path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("lm_head")}
    safetensors.torch.save_file(kept, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, among them lm_head\.weight.* of a causal language model"):
        built(path)
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        built(path)
