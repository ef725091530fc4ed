"""The first training steps equal the original implementation's, value by value."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.models import DenseCL, Keys, match
from tests.reference import cases

# (case, steps that are compared, tolerance of the losses)
CASES = [("r18_default", 5, 1e-4), ("r18_grid3", 3, 1e-4), ("r50_lambda03", 1, 1e-4)]
TORCH_NAMES = {
    "backbone": "0",
    "global_head.0": "1.mlp.0",
    "global_head.2": "1.mlp.2",
    "dense_head.0": "1.mlp2.0",
    "dense_head.2": "1.mlp2.2",
}


def reference_name(name: str) -> str:
    for ours, theirs in TORCH_NAMES.items():
        if name.startswith(ours + "."):
            name = theirs + name[len(ours) :]
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


def build(case: dict) -> DenseCL:
    model = DenseCL(
        BackboneSpec(case["depth"]),
        HeadSpec(hidden_dim=case["hid_channels"], out_dim=case["out_channels"], num_grid=case["num_grid"]),
        queue_len=case["K"],
        temperature=case["T"],
        momentum=case["m"],
    )
    for encoder in (model.query_encoder, model.key_encoder):
        for name, parameter in encoder.named_parameters():
            if name.endswith(("_mean", "_variance")):
                continue
            shape = list(parameter.shape)
            linear = len(shape) == 2
            value = cases.weight(reference_name(name), tuple(shape[::-1] if linear else shape), case["seed"])
            parameter.set_value(value.T if linear else value)
    for queue, name in ((model.global_queue, "queue"), (model.dense_queue, "queue2")):
        queue.keys.set_value(cases.queue(name, case["out_channels"], case["K"], case["seed"]).T)
    return model


@pytest.mark.parametrize(("name", "steps", "tolerance"), CASES)
def test_training_steps_equal_the_original(name, steps, tolerance):
    case, expected_steps = cases.read_case(name)
    model = build(case)
    model.train()
    optimizer = paddle.optimizer.Momentum(
        case["lr"], case["momentum"], parameters=model.query_encoder.parameters(), weight_decay=case["weight_decay"]
    )
    for expected in expected_steps[:steps]:
        query_images, key_images = (paddle.to_tensor(cases.images(case, expected["step"], view)) for view in "qk")
        model.update_key_encoder()
        with paddle.no_grad():
            key = model.key_encoder(key_images)
        query = model.query_encoder(query_images)
        losses = model.losses(query, key, case["loss_lambda"])
        loss, global_loss, dense_loss = (losses[name] for name in ("loss", "global_loss", "dense_loss"))
        matches = match(query.features, key.features)[0].tolist()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        model.enqueue(Keys(key, key.global_vector, key.dense_mean))

        assert float(global_loss) == pytest.approx(expected["loss_single"], abs=tolerance)
        assert float(dense_loss) == pytest.approx(expected["loss_dense"], abs=tolerance)
        assert float(loss) == pytest.approx(expected["loss"], abs=tolerance)
        assert matches == expected["match"]
        for queue, probe in ((model.global_queue, "queue_probe"), (model.dense_queue, "queue2_probe")):
            np.testing.assert_allclose(queue.keys.numpy().T[:4, :4].ravel(), expected[probe], atol=1e-4)
        for encoder, norms in ((model.query_encoder, expected["q"]), (model.key_encoder, expected["k"])):
            ours = {reference_name(n): float(np.linalg.norm(p.numpy())) for n, p in encoder.named_parameters()}
            for weight, norm in norms.items():
                # Paddle averages the biased batch variance, torch the unbiased one
                assert ours[weight] == pytest.approx(norm, rel=2e-3 if "running_var" in weight else 1e-4), weight
