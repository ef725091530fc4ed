"""From a backbone to a detector or segmenter: weights, settings and commands for the toolboxes that train those.

``toolboxes`` says what each toolbox is and where its files are, ``yaml_files`` reads their configs, ``prepare`` writes
weights and a scaled config, ``check`` reads a user's own config and says what departs from the protocol. None of them
needs a toolbox or Paddle. ``paddleseg_backbone`` is a plug-in for PaddleSeg and imports both.
"""
