"""Int8 weights; activations are quantised at every call, by ranges found in that call."""

from __future__ import annotations

from pathlib import Path

from pipeline.compression.quantisation.files import finish, load_proto, load_quantiser, quantising
from pipeline.compression.quantisation.weight_only import as_matmul


def quantise_dynamic(source: Path, target: Path) -> None:
    """Write ``source`` with int8 weights to ``target``; ranges of activations are found anew at every call.

    Good where matrix products dominate; convolutions become several times slower than float. Raises ModelError when
    ONNX Runtime cannot quantise the graph.
    """
    library = load_quantiser()
    with quantising(source, "dynamic") as folder:
        proto, plain, made = load_proto(source), folder / "plain.onnx", folder / "int8.onnx"
        # The library turns the weight of a Gemm over once for each Gemm that shares it, and so gets it wrong.
        as_matmul(proto)
        plain.write_bytes(proto.SerializeToString())
        library.quantize_dynamic(str(plain), str(made), per_channel=True, weight_type=library.QuantType.QInt8)
        finish(load_proto(made), source, target, {"how": "dynamic", "types": "U8S8"})
