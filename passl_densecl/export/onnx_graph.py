"""A network as an ONNX graph, written node by node from its arrays.

Written without a converter: no release of paddle2onnx works with both Paddle 2.6 and 3.3, and a ResNet has few kinds of
nodes. Operators are of opset 13 (2020), which every current runtime reads; values are bit-identical to the source's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from passl_densecl.export.network import INPUT_NAME, PIXEL_MEAN, PIXEL_STD, STAGES, InputKind, Network

OPSET = 13
IR_VERSION = 7  # the file format that came with opset 13
BATCH_NORM_EPSILON = 1e-5
UNIT_EPSILON = 1e-12


def onnx_model(network: Network, kind: InputKind) -> onnx.ModelProto:
    """The network as a checked ONNX model; batch, height and width are free."""
    graph = _Graph(network.arrays)
    images = graph.normalize(INPUT_NAME) if kind == "uint8" else INPUT_NAME
    name, axes, _ = STAGES[network.stage]
    graph.node("Identity", [_stage(graph, network, _backbone(graph, network, images))], name)
    shape = ["batch", "height", "width", 3] if kind == "uint8" else ["batch", 3, "height", "width"]
    dtype = TensorProto.UINT8 if kind == "uint8" else TensorProto.FLOAT
    given = helper.make_tensor_value_info(INPUT_NAME, dtype, shape)
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, _output_shape(network, axes))
    title = f"resnet{network.backbone.depth}_{network.stage}"
    proto = helper.make_graph(graph.nodes, title, [given], [result], graph.initializers)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    info = network.info(kind)
    model.producer_name, model.producer_version = info["written_by"].split()
    helper.set_model_props(model, {key: _as_text(value) for key, value in info.items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def _as_text(value: Any) -> str:
    """ONNX metadata are strings: text stays as it is, everything else becomes JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _output_shape(network: Network, axes: tuple[str, ...]) -> list[str | int]:
    known: dict[str, int] = {"channels": 512 if network.backbone.depth < 50 else 2048}
    if network.stage == "classifier":
        known["classes"] = len(network.arrays["fc.bias"])
    if network.stage in ("global", "dense"):
        known["dim"] = len(network.arrays[f"{network.stage}_head.2.bias"])
    if network.num_grid is not None:
        known |= {"rows": network.num_grid, "columns": network.num_grid}
    return [known.get(axis, axis) for axis in axes]


def _backbone(graph: _Graph, network: Network, images: str) -> str:
    """Normalized (B, 3, height, width) → (B, C, H, W). He et al. 2016, the stride in a bottleneck's 3×3 convolution."""
    x = graph.conv_norm(images, "backbone.conv1", "backbone.bn1", stride=1 if network.backbone.stem_stride == 1 else 2)
    x = graph.node("Relu", [x], "backbone.stem")
    if network.backbone.stem_stride == 4:
        x = graph.node("MaxPool", [x], "backbone.maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, network.backbone.last_stride)):
        block = 0
        while f"backbone.layer{stage}.{block}.conv1.weight" in network.arrays:
            x = _block(graph, f"backbone.layer{stage}.{block}", x, stride if block == 0 else 1)
            block += 1
    return x


def _block(graph: _Graph, at: str, x: str, stride: int) -> str:
    """A basic block (two convolutions) or a bottleneck (three), with its shortcut."""
    convolutions = 3 if f"{at}.conv3.weight" in graph.arrays else 2
    strided = 2 if convolutions == 3 else 1
    y = x
    for number in range(1, convolutions + 1):
        y = graph.conv_norm(y, f"{at}.conv{number}", f"{at}.bn{number}", stride if number == strided else 1)
        if number < convolutions:
            y = graph.node("Relu", [y], f"{at}.relu{number}")
    if f"{at}.downsample.0.weight" in graph.arrays:
        x = graph.conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
    return graph.node("Relu", [graph.node("Add", [y, x], f"{at}.sum")], f"{at}.out")


def _stage(graph: _Graph, network: Network, features: str) -> str:
    """(B, C, H, W) → the output of the network's stage."""
    if network.stage == "backbone":
        return features
    if network.stage == "dense":
        if network.num_grid is not None:
            features = graph.pool_to_grid(features, network.num_grid)
        hidden = graph.node("Relu", [graph.conv(features, "dense_head.0")], "dense_head.1")
        return graph.unit(graph.conv(hidden, "dense_head.2"))
    pooled = graph.node("ReduceMean", [features], "pooled", axes=[2, 3], keepdims=0)
    if network.stage == "pooled":
        return pooled
    if network.stage == "classifier":
        return graph.linear(pooled, "fc")
    hidden = graph.node("Relu", [graph.linear(pooled, "global_head.0")], "global_head.1")
    return graph.unit(graph.linear(hidden, "global_head.2"))


class _Graph:
    """Nodes and constants, collected in order. A node's name is the name of its output; methods return it."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.arrays[name])

    def conv(self, x: str, at: str, stride: int = 1) -> str:
        """A convolution with "same" padding, and its bias where there is one."""
        window = self.arrays[f"{at}.weight"].shape[-1]
        inputs = [x, *(self.weight(f"{at}.{part}") for part in ("weight", "bias") if f"{at}.{part}" in self.arrays)]
        return self.node("Conv", inputs, at, kernel_shape=[window] * 2, strides=[stride] * 2, pads=[window // 2] * 4)

    def conv_norm(self, x: str, conv: str, norm: str, stride: int) -> str:
        """Convolution and BatchNorm with running statistics. Not fused: runtimes do that, and weights stay readable."""
        values = [self.weight(f"{norm}.{part}") for part in ("weight", "bias", "_mean", "_variance")]
        return self.node("BatchNormalization", [self.conv(x, conv, stride), *values], norm, epsilon=BATCH_NORM_EPSILON)

    def linear(self, x: str, at: str) -> str:
        return self.node("Gemm", [x, self.weight(f"{at}.weight"), self.weight(f"{at}.bias")], at)

    def unit(self, x: str) -> str:
        """(B, D, …) → length 1 over D."""
        floor = self.constant("unit.epsilon", np.float32(UNIT_EPSILON))
        length = self.node("ReduceL2", [x], "unit.length", axes=[1], keepdims=1)
        return self.node("Div", [x, self.node("Max", [length, floor], "unit.divisor")], "unit")

    def normalize(self, images: str) -> str:
        """uint8 (B, height, width, 3), 0..255 → float32 (B, 3, height, width), by ImageNet's mean and deviation."""
        std = np.asarray(PIXEL_STD, np.float32)
        scale = self.constant("normalize.scale", 1 / std)
        shift = self.constant("normalize.shift", -np.asarray(PIXEL_MEAN, np.float32) / std)
        x = self.node("Cast", [images], "normalize.float", to=TensorProto.FLOAT)
        x = self.node("Add", [self.node("Mul", [x, scale], "normalize.scaled"), shift], "normalize.shifted")
        return self.node("Transpose", [x], "normalize", perm=[0, 3, 1, 2])

    def pool_to_grid(self, x: str, cells: int) -> str:
        """(B, C, H, W) → (B, C, cells, cells): averages over rows ⌊g·H/cells⌋ to ⌈(g+1)·H/cells⌉, columns alike.

        ONNX has no such pooling for a map of unknown size: one matrix averages rows, another columns.
        """
        rows, columns = self._averaging(x, 2, cells, "grid.rows"), self._averaging(x, 3, cells, "grid.columns")
        columns = self.node("Transpose", [columns], "grid.columns.across", perm=[1, 0])
        return self.node("MatMul", [self.node("MatMul", [rows, x], "grid.down"), columns], "grid")

    def _averaging(self, x: str, axis: int, cells: int, at: str) -> str:
        """The (cells, N) matrix of averages over an axis of N positions."""
        grid = np.arange(cells)[:, None]
        number = self.constant(f"{at}.cells", np.int64(cells))
        one, zero = self.constant(f"{at}.one", np.int64(1)), self.constant(f"{at}.zero", np.int64(0))
        chosen = self.constant(f"{at}.axis", np.int64(axis))
        size = self.node("Gather", [self.node("Shape", [x], f"{at}.shape"), chosen], f"{at}.size", axis=0)  # N

        def times(name: str, factors: np.ndarray) -> str:
            return self.node("Mul", [self.constant(f"{at}.{name}.factors", factors), size], f"{at}.{name}.product")

        first = self.node("Div", [times("first", grid), number], f"{at}.first")  # ⌊g·N/cells⌋
        whole = self.node("Sub", [times("last", grid + 1), one], f"{at}.last.product_minus_one")
        last = self.node("Div", [whole, number], f"{at}.last")  # ⌈(g+1)·N/cells⌉ − 1
        position = self.node("Range", [zero, size, one], f"{at}.position")  # (N,)
        before = self.node("Less", [position, first], f"{at}.before")
        after = self.node("Greater", [position, last], f"{at}.after")
        outside = self.node("Or", [before, after], f"{at}.outside")
        inside = self.node("Cast", [self.node("Not", [outside], f"{at}.inside")], f"{at}.mask", to=TensorProto.FLOAT)
        axes = self.constant(f"{at}.axes", np.asarray([1], np.int64))
        return self.node("Div", [inside, self.node("ReduceSum", [inside, axes], f"{at}.count")], at)
