"""What is learned from: the correspondence between two views, and the contrastive loss (paper, sections 3.2 to 3.4)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F


@paddle.no_grad()
def match(query_features: paddle.Tensor, key_features: paddle.Tensor) -> paddle.Tensor:
    """(B, C, S), (B, C, S) → (B, S) int64: for every query position the index of the most similar key position.

    Both are unit vectors over C, so the product is the cosine.
    """
    return paddle.bmm(query_features.transpose([0, 2, 1]), key_features).argmax(axis=2)


def gather_matches(key_dense: paddle.Tensor, matches: paddle.Tensor) -> paddle.Tensor:
    """(B, D, S), (B, S) → (B·S, D): for every query position the dense key vector at its match."""
    batch, dim, positions = key_dense.shape
    rows = key_dense.transpose([0, 2, 1]).reshape([batch * positions, dim])
    offsets = paddle.arange(batch, dtype="int64").unsqueeze(1) * positions
    return paddle.gather(rows, (matches + offsets).reshape([-1]))


def info_nce(
    query: paddle.Tensor, positive: paddle.Tensor, negatives: paddle.Tensor, temperature: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(N, D), (N, D), (K, D) unit vectors → mean InfoNCE and the share of queries whose positive beats every negative.

    The cross-entropy of [query·positive, query·negatives] / temperature with the positive as the right class, in float32;
    chance is ln(K+1). Gradient reaches `query` only when the keys carry none. The logits are not concatenated:
    logaddexp joins the positive to the log-sum-exp of the negatives.
    """
    similarity = (query * positive).sum(axis=1) / temperature  # (N,)
    others = paddle.matmul(query, negatives, transpose_y=True) / temperature  # (N, K)
    loss = F.softplus(paddle.logsumexp(others, axis=1) - similarity).mean()
    with paddle.no_grad():
        top1 = (similarity > others.max(axis=1)).astype("float32").mean()
    return loss, top1
