"""How often a step copies between host and device, where on a GPU the host waits for everything that is computed."""

from __future__ import annotations

from tests.engine.runs import write_config
from tests.engine.test_distributed import launch

# Two views, the index arrays, and one answer: whether the numbers are finite and somebody was asked to stop.
COPIES = 4

COUNT = """
from passl_densecl.config import load_config
from passl_densecl.data import datasets  # OpenCV first: after Paddle 2.6 it may crash
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.models import DenseCL
import paddle

copies, at_step, within = [], [], []

def counted(name):
    original = getattr(paddle.Tensor, name)
    def call(*arguments, **named):
        if not within:
            copies.append(name)
        within.append(name)
        try:
            return original(*arguments, **named)
        finally:
            within.pop()
    setattr(paddle.Tensor, name, call)

for name in ("set_value", "numpy", "__array__", "item", "tolist", "cpu", "__float__", "__int__", "__bool__"):
    counted(name)
move = DenseCL.update_key_encoder
DenseCL.update_key_encoder = lambda model: (at_step.append(len(copies)), move(model))
assert pretrain(load_config({config!r})) == 0
steps = [copies[first:last] for first, last in zip(at_step, at_step[1:])]
print("copies", [len(step) for step in steps], max(steps[1:-1], key=len))
assert len(steps) > 3  # the first and the last one are logged
assert max(map(len, steps[1:-1])) <= {most}, steps[1]
"""


def test_a_step_copies_little(tmp_path, photos):
    config = write_config(tmp_path, photos, batch_size=8, epochs=1, log_every_steps=100)
    launch(COUNT.format(config=str(config), most=COPIES), tmp_path, 2)
