"""Trained networks for other runtimes (paddle.inference, onnxruntime). Each export is run and compared first.

This module imports nothing, so that a wrong path or wrong weights are reported before Paddle's slow import:
``network.read_network`` reads, ``write.export`` writes.
"""
