"""Warnings of runs that go on without learning: said once where it is so, and never of a run that learns."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.data.datasets import PairDataset
from passl_densecl.engine import pretrain as pretraining
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.reliability import watchdog as watchdogs
from passl_densecl.reliability.watchdog import Watchdog, similarity
from tests.engine.runs import metrics, write_config
from tests.engine.test_messages import Recorder

CHANCE = math.log(513)
# (step, global loss, dense loss, λ) of configs/small/densecl_r18.yaml on Imagenette, as logged.
HEALTHY = [
    (1, 0.07, 1.13, 0.0),
    (50, 6.08, 7.16, 0.0),
    (100, 4.91, 7.11, 0.0),
    (150, 4.77, 7.05, 0.0),
    (200, 4.44, 6.49, 0.0),
    (250, 4.14, 5.99, 0.0),
    (350, 4.80, 5.92, 0.0),
    (450, 4.04, 5.30, 0.0),
    (550, 3.93, 5.32, 0.0),
    (700, 4.78, 5.59, 0.0),
    (900, 4.30, 5.18, 0.0),
    (1200, 4.02, 5.11, 0.0),
    (1800, 3.37, 5.00, 0.0),
    (2400, 3.38, 4.92, 0.0),
    (3000, 2.88, 0.89, 0.5),
    (3600, 3.22, 0.67, 0.5),
    (4200, 2.16, 0.82, 0.5),
    (4800, 2.86, 1.50, 0.5),
]


def line(step: int, global_loss: float, dense_loss: float = 4.0, loss_lambda: float = 0.5, **others: float) -> dict:
    return {
        "step": step,
        "global_loss": global_loss,
        "dense_loss": dense_loss,
        "chance": CHANCE,
        "loss_lambda": loss_lambda,
        "global_similarity": 0.2,
        "dense_similarity": 0.3,
        "data_share": 0.01,
        **others,
    }


@pytest.fixture
def watched(tmp_path, photos):
    """A watchdog of a queue that 16 steps fill, and what it said."""

    def watched(workers: int = 2) -> tuple[Watchdog, list[str]]:
        config = load_config(write_config(tmp_path, photos, model__queue_len=512), ["batch_size=32"])
        assert isinstance(config, PretrainConfig)
        log = Recorder()
        dog = Watchdog(config, 512, workers, log)
        check = dog.check
        said: list[str] = []

        def noted(values):
            check(values)
            assert all(label == "warning" for label, _ in log.lines)
            said[:] = [text for _, text in log.lines]

        return SimpleNamespace(check=noted), said  # type: ignore[return-value]

    return watched


def test_nothing_is_said_of_a_run_that_learns(watched):
    dog, said = watched()
    for step, global_loss, dense_loss, loss_lambda in HEALTHY:
        dog.check(line(step, global_loss, dense_loss, loss_lambda))
    assert not said


def test_a_loss_at_chance(watched):
    dog, said = watched()
    for step in range(10, 2000, 10):
        dog.check(line(step, CHANCE + 0.05 * math.sin(step)))
        assert bool(said) == (step >= 20 + 500), (
            step
        )  # 16 steps fill the queue; the first reading after it is of step 20
    assert said == [
        "the global loss has been at chance (ln(K+1) = 6.24) for 500 steps with a full queue: it does not distinguish "
        "images. The learning rate is far too high or too low (optimizer.lr), or the two views of an image have "
        "nothing in common: densecl plot views shows them"
    ]


def test_the_dense_loss_counts_from_when_it_is_trained(watched):
    dog, said = watched()
    for step in range(10, 2000, 10):
        dog.check(line(step, 4.0, 1.1 * CHANCE, loss_lambda=0.0 if step < 1000 else 0.5))
        assert bool(said) == (step >= 1500), step
    assert len(said) == 1
    assert "the dense loss" in said[0]
    dog, said = watched()
    for step in range(10, 2000, 10):
        dog.check(line(step, CHANCE, loss_lambda=1.0))  # the global head is not trained at all
    assert not said


def test_features_that_are_all_alike(watched):
    dog, said = watched()
    for step in range(10, 1000, 10):
        dog.check(line(step, 4.0, global_similarity=0.97 if step > 300 else 0.5))
        assert bool(said) == (step >= 790), step  # the mean of 500 steps, of which the last 490
    assert len(said) == 1
    assert said[0].startswith(
        "the global features of all images are alike (mean cosine 0.97 for 500 steps; 0 is ideal)"
    )


def test_waiting_for_data_most_of_the_time(watched):
    for workers, remedy in ((0, "data.num_workers: auto;"), (2, "more data.num_workers (now 2) if cores are free;")):
        dog, said = watched(workers)
        for step, share in enumerate([0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 1):
            dog.check(line(step, 4.0, data_share=share))
            assert bool(said) == (step >= 10), step
        assert len(said) == 1
        assert said[0].startswith(f"over 50% of the time is spent waiting for images: {remedy} densecl data pack")


def test_similarity_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2, 6, 5)).astype("float32") + 0.5
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    keys = SimpleNamespace(global_vector=paddle.to_tensor(vectors[0]), dense_mean=paddle.to_tensor(vectors[1]))
    for name, part in zip(("global_similarity", "dense_similarity"), vectors, strict=True):
        pairs = [float(part[i] @ part[j]) for i in range(6) for j in range(6) if i != j]
        assert similarity(keys)[name] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert set(similarity(SimpleNamespace(global_vector=keys.global_vector, dense_mean=None))) == {"global_similarity"}
    assert not similarity(SimpleNamespace(global_vector=keys.global_vector[:1], dense_mean=None))
    alike = SimpleNamespace(global_vector=paddle.to_tensor(np.repeat(vectors[0][:1], 6, axis=0)), dense_mean=None)
    assert similarity(alike)["global_similarity"] == pytest.approx(1, abs=1e-5)


def test_a_real_run_that_cannot_learn_from_data_that_come_slowly(tmp_path, photos, monkeypatch):
    """At a learning rate of nothing, with a bias that outweighs what the images say, features stay alike and losses at
    chance.
    """
    monkeypatch.setattr(watchdogs, "PATIENCE_STEPS", 5)
    monkeypatch.setattr(watchdogs, "PATIENCE_FILLINGS", 1)
    monkeypatch.setattr(watchdogs, "WAITING", 0.02)
    load, build = PairDataset.__getitem__, pretraining.build_model

    def collapsed(*arguments):
        model = build(*arguments)
        for encoder in (model.query_encoder, model.key_encoder):
            for head in (encoder.global_head, encoder.dense_head):
                head[2].bias.set_value(np.full(head[2].bias.shape, 100, "float32"))
        return model

    monkeypatch.setattr(pretraining, "build_model", collapsed)

    def slowly(dataset, key):
        time.sleep(0.03)
        return load(dataset, key)

    monkeypatch.setattr(PairDataset, "__getitem__", slowly)
    config = load_config(
        write_config(
            tmp_path,
            photos,
            model__hidden_dim=16,
            model__out_dim=8,
            model__queue_len=8,
            batch_size=8,
            device="cpu",
            epochs=2,
            optimizer={"lr": 1e-12},
            data__transforms=[{"name": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]}],
        )
    )
    assert pretrain(config) == 0
    warnings = [text for text in (tmp_path / "run/train.log").read_text().splitlines() if text.startswith("warning")]
    starts = (
        "the global features of all",
        "the global loss has been",
        "the dense features of all",
        "the dense loss has been",
        "over 2% of",
        "micro_batch_size 4 × the last stage's map are 4 values",
    )
    for start in starts:
        assert sum(text.startswith(f"warning  {start}") for text in warnings) == 1, (start, warnings)
    assert len(warnings) == len(starts)
    assert all(0.9 < each["global_similarity"] <= 1.000001 for each in metrics(tmp_path / "run"))
