"""The steps of benchmarks/torch_densecl.py against the original implementation's, as tests/models/test_reference.py has
them for this project's own. By hand, in an environment that has torch: python -m tests.reference.check_torch
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.torch_densecl import DenseCL, Encoder
from tests.reference import cases


def original_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"0.{rest}" if head == "backbone" else f"1.{name}"


def check(name: str, steps: int) -> float:
    """The largest difference of a loss; matches must be equal."""
    case, expected_steps = cases.read_case(name)
    encoder = Encoder(case["depth"], 4, 2, case["hid_channels"], case["out_channels"], case["num_grid"])
    for own, parameter in encoder.named_parameters():
        value = cases.weight(original_name(own), tuple(parameter.shape), case["seed"])
        parameter.data = torch.from_numpy(value)
    model = DenseCL(encoder, case["K"], case["T"], case["m"], seed=0)
    model.queues = [
        torch.from_numpy(cases.queue(queue, case["out_channels"], case["K"], case["seed"])).T.contiguous()
        for queue in ("queue", "queue2")
    ]
    rate = {key: case[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer, worst = torch.optim.SGD(model.query.parameters(), **rate), 0.0
    for expected in expected_steps[:steps]:
        query, key = (torch.from_numpy(cases.images(case, expected["step"], view)) for view in "qk")
        keys = model.encode_keys(key, torch.arange(len(key)), len(key))
        loss, told = model.losses(query, keys, case["loss_lambda"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.enqueue(keys)
        pairs = {"loss": "loss", "global_loss": "loss_single", "dense_loss": "loss_dense"}
        worst = max(worst, *(abs(told[own] - expected[theirs]) for own, theirs in pairs.items()))
        assert told["matches"][0].tolist() == expected["match"], (
            f"{name}: the matches of step {expected['step']} differ"
        )
        for queue, probe in zip(model.queues, ("queue_probe", "queue2_probe"), strict=True):
            np.testing.assert_allclose(queue.T[:4, :4].ravel().numpy(), expected[probe], atol=1e-4)
    return worst


if __name__ == "__main__":
    for name, steps in (("r18_default", 5), ("r18_grid3", 3), ("r50_lambda03", 1)):
        print(f"{name}: {steps} steps, losses within {check(name, steps):.1e}, matches and queues equal", flush=True)
