"""Fewer bits: functions from one ONNX file to another, or from one torch model to another."""

from pipeline.compression.quantisation.counting import bits_per_weight, fusion, overstated, unfused
from pipeline.compression.quantisation.dynamic import quantise_dynamic
from pipeline.compression.quantisation.files import load_quantiser, shorten
from pipeline.compression.quantisation.half import halve, to_bfloat16
from pipeline.compression.quantisation.mixed import quantise_mixed
from pipeline.compression.quantisation.qat import finish_qat, observe_ranges, prepare_qat
from pipeline.compression.quantisation.static import choose_activation_type, quantise_static
from pipeline.compression.quantisation.weight_only import quantise_weights

__all__ = [
    "bits_per_weight",
    "choose_activation_type",
    "finish_qat",
    "fusion",
    "halve",
    "load_quantiser",
    "observe_ranges",
    "overstated",
    "prepare_qat",
    "quantise_dynamic",
    "quantise_mixed",
    "quantise_static",
    "quantise_weights",
    "shorten",
    "to_bfloat16",
    "unfused",
]
