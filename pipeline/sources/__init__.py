"""Label sources: where the soft labels of a batch come from. The one place where the store meets torch.

``CachedLabels`` reads them from a cache, ``LiveTeacher`` computes them, ``Mixture`` makes several sources one,
``Panel`` keeps them apart, and ``Route`` goes from one to the next as epochs pass. Losses and training loops see the
same typed batches whichever it is. ``CachedFeatures`` and ``LiveFeatures`` give the features of a teacher for the same
batches.
"""

from pipeline.sources.agreement import check_agreement
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.cached import CachedLabels
from pipeline.sources.features import CachedFeatures, FeatureSource, FeatureStream, LiveFeatures
from pipeline.sources.live import LiveTeacher
from pipeline.sources.matching import Matching, match
from pipeline.sources.mixture import Mixture
from pipeline.sources.panel import Member, Panel
from pipeline.sources.replay import replay_views
from pipeline.sources.route import Route

__all__ = [
    "CachedFeatures",
    "CachedLabels",
    "FeatureSource",
    "FeatureStream",
    "LabelSource",
    "LabelStream",
    "LiveFeatures",
    "LiveTeacher",
    "Matching",
    "Member",
    "Mixture",
    "Panel",
    "Route",
    "check_agreement",
    "match",
    "replay_views",
]
