"""Trained networks for other engines: Paddle's inference model and ONNX, run and compared before they get their name.

Nothing is imported here, so that a mistake in a path or in weights shows before the seconds that Paddle takes:
``read_network`` of ``network`` reads, ``export`` of ``write`` writes.
"""
