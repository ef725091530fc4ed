"""From a backbone to a detector or segmenter: weights, settings and commands for the engines that train those.

``engines`` says what each engine is and where its files are, ``yaml_files`` reads their configs, ``prepare`` writes weights
and a scaled config, ``check`` reads a user's own config and says what departs from the protocol. None of them needs an engine
or Paddle. ``paddleseg_backbone`` is a plug-in for PaddleSeg and imports both.
"""
