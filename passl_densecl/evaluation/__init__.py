"""What a backbone is worth without training it further: features, nearest neighbours, correspondences."""

from __future__ import annotations

from passl_densecl.evaluation.correspondence import (
    Correspondence,
    View,
    correspondence_accuracy,
    draw_view,
    is_near,
    true_positions,
)
from passl_densecl.evaluation.features import Features, feature_map, feature_maps, load_backbone, pooled_features
from passl_densecl.evaluation.knn import knn_accuracy

__all__ = [
    "Correspondence",
    "Features",
    "View",
    "correspondence_accuracy",
    "draw_view",
    "feature_map",
    "feature_maps",
    "is_near",
    "knn_accuracy",
    "load_backbone",
    "pooled_features",
    "true_positions",
]
