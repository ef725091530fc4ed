"""Pictures: what training sees, how a run went, what a backbone has learned. One module for each kind of picture.

`views` augmented pairs · `match` correspondences · `heatmap` similarity to one cell · `pca` maps as colors ·
`embedding` a folder in the plane · `neighbors` images that are alike · `schedule` and `curves` of runs · `report` all of a run on one page.
`style` has what they share; `maps` gives backbone or dense features. Every `draw_…` returns a matplotlib Figure,
`style.save_figure` writes it. Nothing is imported here: curves and schedules need no Paddle.
"""
