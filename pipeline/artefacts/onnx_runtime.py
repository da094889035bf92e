"""Open an ONNX file in ONNX Runtime, as whoever deploys it would."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.artefacts.checking import Floats, Predictor
from pipeline.artefacts.onnx_file import INPUT, OUTPUT
from pipeline.errors import ModelError
from pipeline.references import optional


def open_model(path: Path, threads: int = 1) -> Predictor:
    """A function that runs an ONNX file on the CPU. ``threads`` 0 leaves the number to ONNX Runtime.

    Raises MissingDependencyError without onnxruntime, ModelError when it cannot open the file.
    """
    runtime = optional("onnxruntime", "compress", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime {runtime.__version__} cannot open {path.name}: {error}") from error

    def predict(inputs: Floats) -> Floats:
        return np.asarray(session.run([OUTPUT], {INPUT: inputs})[0])

    return predict
