"""Open an ONNX file in ONNX Runtime, as whoever deploys it would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Floats, Inputs, Predictor
from pipeline.artefacts.onnx_file import INPUT, OUTPUT
from pipeline.errors import ModelError, first_line
from pipeline.references import optional


def open_session(path: Path, threads: int = 1) -> tuple[Any, str]:
    """An inference session on the CPU, and the runtime's version. ``threads`` 0 leaves the number to it.

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
        raise ModelError(f"ONNX Runtime {runtime.__version__} cannot open {path.name}: {first_line(error)}") from error
    return session, str(runtime.__version__)


def open_model(path: Path, threads: int = 1) -> Predictor:
    """A function that runs a file of ``export_onnx``, or what was made of one. Raises what ``open_session`` raises."""
    session, _ = open_session(path, threads)

    def predict(inputs: Inputs) -> Floats:
        return np.asarray(session.run([OUTPUT], {INPUT: inputs})[0])

    return predict
