"""Trained networks for other engines: Paddle's inference model and ONNX, run and compared before they get their name."""

from __future__ import annotations

from passl_densecl.export.network import STAGES, Network, read_network
from passl_densecl.export.write import FORMATS, Difference, Report, export, require

__all__ = ["FORMATS", "STAGES", "Difference", "Network", "Report", "export", "read_network", "require"]
