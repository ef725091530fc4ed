"""What a backbone is worth without training it further: features, nearest neighbors, linear heads, correspondences."""

from __future__ import annotations

from passl_densecl.evaluation.correspondence import (
    Correspondence,
    View,
    correspondence_accuracy,
    draw_view,
    is_near,
    true_positions,
)
from passl_densecl.evaluation.features import (
    Features,
    feature_map,
    feature_maps,
    load_backbone,
    pooled_features,
    untrained_like,
)
from passl_densecl.evaluation.knn import knn_accuracies, knn_accuracy
from passl_densecl.evaluation.linear import LinearResult, linear_accuracy

__all__ = [
    "Correspondence",
    "Features",
    "LinearResult",
    "View",
    "correspondence_accuracy",
    "draw_view",
    "feature_map",
    "feature_maps",
    "is_near",
    "knn_accuracies",
    "knn_accuracy",
    "linear_accuracy",
    "load_backbone",
    "pooled_features",
    "true_positions",
    "untrained_like",
]
