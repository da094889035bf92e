"""Writes ``distillkit/`` and ``distillkit.npz`` with DistillKit's own code, which is not here: see README.md.

PYTHONPATH=PATH/TO/DistillKit python tests/caches/foreign/make_distillkit.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.sample_common import compressed_logit_schema

FOLDER = Path(__file__).parent / "distillkit"
V = 997
PLAIN = {"d": V, "delta_encoding": False, "error_diffusion": False, "residual_bins": []}
BINS = [
    {"scale_dtype": "float16", "element_bits": 8, "num_elements": 6},
    {"scale_dtype": "bfloat16", "element_bits": 3, "num_elements": 5},
    {"scale_dtype": "float32", "element_bits": 1, "num_elements": 4},
]
CONFIGS = {
    # The two of its README, and that of its quick start; for the others k is small.
    "recommended": {
        **PLAIN,
        "k": 128,
        "exact_k": 16,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
        "term_dtype": "float32",
    },
    "budget": {
        **PLAIN,
        "k": 50,
        "exact_k": 1,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "float32",
    },
    "quickstart": {**PLAIN, "k": 128, "exact_k": 32, "polynomial_terms": [0, 1, 2], "delta_encoding": True},
    "all_exact": {**PLAIN, "k": 8, "exact_k": 8, "exact_dtype": "float16"},
    "float64": {
        **PLAIN,
        "k": 20,
        "exact_k": 2,
        "exact_dtype": "float64",
        "polynomial_terms": [0, 1, 2, "exp"],
        "term_dtype": "float64",
        "normalize_t": True,
        "residual_bins": [{"scale_dtype": "float64", "element_bits": 17, "num_elements": 18}],
    },
    "halves": {
        **PLAIN,
        "k": 20,
        "exact_k": 3,
        "exact_dtype": "float16",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "bfloat16",
    },
    "float16_terms": {
        **PLAIN,
        "k": 20,
        "exact_k": 3,
        "exact_dtype": "float16",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "float16",
        "normalize_t": True,
    },
    "bins": {**PLAIN, "k": 20, "exact_k": 3, "polynomial_terms": [0, 1, "sqrt"], "residual_bins": BINS},
    "bins_alone": {**PLAIN, "k": 18, "exact_k": 3, "exact_dtype": "bfloat16", "residual_bins": BINS},
    "diffused": {
        **PLAIN,
        "k": 20,
        "exact_k": 3,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, "sqrt"],
        "residual_bins": BINS[:2],
        "delta_encoding": True,
        "error_diffusion": True,
    },
    "nothing_exact": {**PLAIN, "k": 12, "exact_k": 0, "polynomial_terms": [0, 1, 2, "sqrt"]},
}


def main() -> None:
    """Two sequences of 4 and 3 scored positions, from flat to confident, in each configuration."""
    FOLDER.mkdir(exist_ok=True)
    random = np.random.default_rng(23)
    logits = random.standard_normal((7, V)) * np.linspace(1, 6, 7)[:, None]
    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=1).float()
    tokens = random.integers(0, V, 9).astype(np.uint64)
    decoded: dict[str, np.ndarray] = {"tokens": tokens.astype(np.int64), "logprobs": logprobs.numpy()}
    for name, described in CONFIGS.items():
        config = DistributionQuantizationConfig.model_validate(described)
        compressor = LogprobCompressor(config=config)
        columns: dict[str, list] = {field: [] for field in compressed_logit_schema().names}
        ids, values = [], []
        for words, rows in ((tokens[:5], logprobs[None, :4]), (tokens[5:], logprobs[None, 4:])):
            packed = compressor.compress(rows)
            columns["input_ids"].append(words.tolist())
            for key, tensor in packed.items():
                columns[key].append(tensor[0].tolist())
            found_ids, found = compressor.decompress_to_sparse(packed)
            ids.append(found_ids[0].numpy().astype(np.int32))
            values.append(found[0].double().numpy())
        pq.write_table(pa.table(columns, compressed_logit_schema()), FOLDER / f"{name}.parquet")
        text = yaml.safe_dump(config.model_dump(mode="json"))
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")
        decoded[f"{name}/ids"], decoded[f"{name}/logprobs"] = np.concatenate(ids), np.concatenate(values)
    np.savez_compressed(FOLDER.with_suffix(".npz"), **decoded)


if __name__ == "__main__":
    main()
