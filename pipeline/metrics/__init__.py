"""What a student is judged by: pure numpy functions of logits, labels and soft labels.

N examples, C classes, K kept classes, B bins, S seeds. Logarithms are natural, so likelihoods and divergences are
in nats. Accumulation is in float64 whatever the dtype of the logits.
"""

from pipeline.metrics.calibration import Reliability, adaptive_reliability, reliability
from pipeline.metrics.comparison import Comparison, compare, half_width, spread, student_t95
from pipeline.metrics.detection import aupr, auroc, energy, fpr_at_tpr
from pipeline.metrics.distributions import Told, cross_entropy, divergence, log_softmax, predicted
from pipeline.metrics.scores import (
    Gathered,
    Scores,
    confusion_matrix,
    per_class_accuracy,
    score,
    top_k_correct,
    true_rank,
)
from pipeline.metrics.sequences import by_group, clustered, sign_flips
from pipeline.metrics.significance import McNemar, mcnemar, wilson
from pipeline.metrics.speculation import DRAFTED, acceptance, tokens_per_call
from pipeline.metrics.temperature import fit_temperature

__all__ = [
    "DRAFTED",
    "Comparison",
    "Gathered",
    "McNemar",
    "Reliability",
    "Scores",
    "Told",
    "acceptance",
    "adaptive_reliability",
    "aupr",
    "auroc",
    "by_group",
    "clustered",
    "compare",
    "confusion_matrix",
    "cross_entropy",
    "divergence",
    "energy",
    "fit_temperature",
    "fpr_at_tpr",
    "half_width",
    "log_softmax",
    "mcnemar",
    "per_class_accuracy",
    "predicted",
    "reliability",
    "score",
    "sign_flips",
    "spread",
    "student_t95",
    "tokens_per_call",
    "top_k_correct",
    "true_rank",
    "wilson",
]
