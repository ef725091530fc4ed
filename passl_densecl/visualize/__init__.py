"""Pictures of training data, runs and features. One module per kind of picture.

`views` augmented pairs · `match` correspondences · `heatmap` similarity to one cell · `pca` maps as colors ·
`embedding` a folder in the plane · `neighbors` of images · `schedule` and `curves` of runs · `report` one page per run.
`style` has what they share; `maps` gives backbone or dense features. Every `draw_…` returns a matplotlib Figure,
`style.save_figure` writes it. This module imports nothing: curves and schedules need no Paddle.
"""
