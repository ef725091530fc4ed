"""The correspondence between two views, and the contrastive loss (paper, sections 3.2 to 3.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

# Logits that exist at one time. On a CPU they should stay in its cache; a GPU wants fewer, larger kernels.
_LOGITS_AT_ONCE = {"cpu": 2**21, "gpu": 2**24}


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Within it, float32 matrix products on a GPU are float32: not TF32, whose factors have 10 bits after the point
    instead of 23, which Paddle takes on GPUs since Ampere.
    """
    core = paddle.base.core
    if not hasattr(core, "set_cublas_switch"):  # a build for CPUs
        yield
        return
    before = core.get_cublas_switch()
    core.set_cublas_switch(False)
    try:
        yield
    finally:
        core.set_cublas_switch(before)


@paddle.no_grad()
def match(query_features: paddle.Tensor, key_features: paddle.Tensor) -> paddle.Tensor:
    """(B, C, S), (B, C, S) → (B, S) int64: for every query position the index of the most similar key position.

    Similar by the cosine, in float32; the length of a query vector makes no difference to that. The
    maps are not copied: the similarities are divided by the lengths of the keys, not the keys.
    """
    # `astype` would copy what is float32 already.
    query, key = (x if x.dtype == paddle.float32 else x.astype("float32") for x in (query_features, key_features))
    lengths = key.norm(p=2, axis=1, keepdim=True).clip(min=1e-12)  # (B, 1, S)
    with exact_float32():
        similarity = paddle.matmul(query, key, transpose_x=True)
    return (similarity / lengths).argmax(axis=2)


def gather_matches(key_dense: paddle.Tensor, matches: paddle.Tensor) -> paddle.Tensor:
    """(B, D, S), (B, S) → (B·S, D): for every query position the dense key vector at its match."""
    batch, dim, positions = key_dense.shape
    rows = key_dense.transpose([0, 2, 1]).reshape([batch * positions, dim])
    offsets = paddle.arange(batch, dtype="int64").unsqueeze(1) * positions
    return paddle.gather(rows, (matches + offsets).reshape([-1]))


def info_nce(
    query: paddle.Tensor,
    positive: paddle.Tensor,
    negatives: paddle.Tensor,
    temperature: float,
    used: paddle.Tensor | None = None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(N, D), (N, D), (K, D) unit vectors → mean InfoNCE and the share of queries whose positive beats every negative.

    The cross-entropy of [query·positive, query·negatives] / temperature with the positive as the right class; chance is
    ln(K+1). Exact float32, inside `auto_cast` too. Gradient reaches `query` only. The N×K logits never exist as a
    whole: beside the arguments the memory needed does not grow with K. `used` (N,) bool: the mean is over these queries
    only, and 0 where there is none.
    """
    with paddle.amp.auto_cast(enable=False), exact_float32():
        vectors = (part.astype("float32") for part in (query, positive, negatives))
        return _InfoNCE.apply(*vectors, temperature, used)


def info_nce_plain(
    query: paddle.Tensor, positive: paddle.Tensor, negatives: paddle.Tensor, temperature: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """What `info_nce` computes, in plain form: the cross-entropy of all logits, of which the first is the right one.

    For reading and for tests: it holds all N×(K+1) logits, several times.
    """
    logits = paddle.concat([(query * positive).sum(axis=1, keepdim=True), query @ negatives.T], axis=1) / temperature
    loss = (logits.logsumexp(axis=1) - logits[:, 0]).mean()
    return loss, (logits.argmax(axis=1) == 0).astype("float32").mean()


class _InfoNCE(PyLayer):
    """`info_nce_plain` without all logits at once: negatives in chunks, with a running log-sum-exp (Milakov and
    Gimelshein 2018, arXiv:1805.02867).

    The gradient is (Σ softmax·keys − positive) / temperature, whose sum can be gathered in the same pass as the loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: paddle.Tensor,
        positive: paddle.Tensor,
        negatives: paddle.Tensor,
        temperature: float,
        used: paddle.Tensor | None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        count, dim = query.shape
        at_once = _LOGITS_AT_ONCE["gpu" if paddle.get_device().startswith("gpu") else "cpu"]
        chunk = max(1, at_once // count)
        scaled = query / temperature
        similarity = (scaled * positive).sum(axis=1, keepdim=True)  # (N, 1)
        highest = paddle.full([count, 1], -float("inf"))  # of the negatives seen so far
        total = paddle.zeros([count, 1])  # Σ exp(logit − highest)
        keys_sum = paddle.zeros([count, dim])  # Σ exp(logit − highest) · key
        for start in range(0, negatives.shape[0], chunk):
            keys = negatives[start : start + chunk]
            logits = paddle.matmul(scaled, keys, transpose_y=True)  # (N, chunk)
            before, highest = highest, paddle.maximum(highest, logits.max(axis=1, keepdim=True))
            weights = logits.subtract_(highest).exp_()
            decay = (before - highest).exp()
            total = total * decay + weights.sum(axis=1, keepdim=True)
            keys_sum = keys_sum * decay + paddle.matmul(weights, keys)
        gap = highest + total.log() - similarity
        share = F.sigmoid(gap)  # of the negatives in the softmax over all
        gradient = (keys_sum / total - positive) * share / (temperature * count)
        losses, beats = F.softplus(gap), (similarity > highest).astype("float32")
        if used is None:
            loss, top1 = losses.mean(), beats.mean()
        else:
            part = used.astype("float32").unsqueeze(1)
            part = part / part.sum().clip(min=1)
            gradient, loss, top1 = gradient * (part * count), (losses * part).sum(), (beats * part).sum()
        ctx.save_for_backward(gradient)
        ctx.without_gradient = 2 if used is None else 3
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    def backward(ctx: Any, *gradients: paddle.Tensor) -> Any:
        (gradient,) = ctx.saved_tensor()
        return gradient * gradients[0], *[None] * ctx.without_gradient  # of the loss; the other tensors get none
