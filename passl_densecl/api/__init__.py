"""The Python interface: models by name, config or file, and their outputs for images.

`models` finds and loads, `images` reads all kinds of images, `inference` classifies and extracts features, `embeddings`
does the latter for whole folders and writes tables. This module imports none of them, because some need Paddle.
"""
