"""What `import passl_densecl` offers: models by name, config or file, and what they say of images.

`models` finds and loads, `images` takes whatever holds an image, `inference` classifies and extracts features,
`embeddings` does the latter for whole folders and writes tables. This module imports none of them: some need Paddle.
"""
