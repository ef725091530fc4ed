"""The networks and their loss.

Shape letters, used in every shape comment of the package:
B images of a micro-batch · C channels of the backbone's last map · H, W its height and width · S = H·W positions ·
D length of a projected vector · K keys in a queue.
"""

from passl_densecl.models.densecl import DenseCL, Encoder, Keys, Losses, Projections
from passl_densecl.models.losses import info_nce, match
from passl_densecl.models.queue import Queue
from passl_densecl.models.resnet import ResNetBackbone, build_backbone, normalize

__all__ = [
    "DenseCL",
    "Encoder",
    "Keys",
    "Losses",
    "Projections",
    "Queue",
    "ResNetBackbone",
    "build_backbone",
    "info_nce",
    "match",
    "normalize",
]
