"""The quality of a backbone without further training: one module per protocol, imported from where it is defined.

`features` maps and pooled vectors of any weights · `knn` · `linear` heads on cached features · `svm` with `multilabel`
sets · `subset` for semi-supervised evaluation · `dense_probe` with `masks` · `correspondence` of two crops.
This module imports none of them: training needs only `features` and `knn`.
"""
