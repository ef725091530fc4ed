"""Write a network for another runtime, run it there, compare the outputs, and only then give the file its name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import paddle

from passl_densecl.errors import InputError
from passl_densecl.export.layer import StageLayer
from passl_densecl.export.network import INPUT_NAME, PIXEL_MEAN, PIXEL_STD, InputKind, Network
from passl_densecl.export.target import FORMATS, check_output, require
from passl_densecl.tensors import to_tensor

TOLERANCE = 1e-4  # of the largest output; float32 with sums in another order stays far below
PROGRAM, INFO = "inference", "info.json"


class Runtime(NamedTuple):
    """An exported model, loaded by the runtime of its format."""

    run: Callable[[np.ndarray], np.ndarray]  # images → output
    output: str  # the output's name there


@dataclass(frozen=True)
class Difference:
    """One comparison of an exported model with the network it came from."""

    images: tuple[int, ...]  # shape of the input
    largest: float  # |exported − original|
    scale: float  # the largest |original|
    what: str = "noise"

    @property
    def relative(self) -> float:
        return self.largest / self.scale if self.scale else self.largest


@dataclass(frozen=True)
class Report:
    """The files of an export and its comparisons."""

    out: Path
    files: tuple[Path, ...]  # in `out`, or `out` itself
    info: dict[str, Any]
    differences: tuple[Difference, ...]
    checked: np.ndarray | None  # the runtime's output for the given photo

    @property
    def worst(self) -> Difference:
        return max(self.differences, key=lambda difference: difference.relative)


def export(
    network: Network,
    out: str | os.PathLike[str],
    format: Literal["paddle", "onnx"],
    *,
    kind: InputKind = "uint8",
    size: int = 224,
    photo: np.ndarray | None = None,
) -> Report:
    """Write `network` to `out` after running it in the format's runtime on several batch and image sizes.

    Args:
        out: a new folder (paddle: program, parameters, info.json) or a file ending in .onnx.
        kind: "uint8" takes images as they are decoded and normalizes inside; "float32" takes normalized images.
        size: approximate side of the test images in pixels; the written model accepts any size.
        photo: uint8 RGB (height, width, 3), another test image.

    Raises:
        InputError: `out` exists or cannot be written, a package is missing, or the exported model's outputs differ from
            the network's by more than ``TOLERANCE`` of the largest. Then nothing is left on disk.
    """
    out = Path(out)
    require(format)
    check_output(out, format)
    paddle.set_device("cpu")
    layer = StageLayer(network, normalizing=kind == "uint8")
    info = network.info(kind)
    with _unfinished(out) as temporary:
        if format == "paddle":
            write_paddle(layer, temporary, kind)
            runtime = paddle_runtime(temporary)
        else:
            write_onnx(network, temporary, kind)
            runtime = onnx_runtime(temporary)
        differences, checked = compare(runtime, layer, kind, size, photo)
        for difference in differences:
            _check(difference, format, out)
        if format == "paddle":
            info["output"]["name"] = runtime.output  # Paddle chooses it
            info["paddle"] = paddle.__version__
            (temporary / INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, out)
    files = tuple(sorted(out.iterdir())) if format == "paddle" else (out,)
    return Report(out, files, info, tuple(differences), checked)


def _check(difference: Difference, format: str, out: Path) -> None:
    """Raise InputError when an exported model's outputs differ from its network's, or are not finite."""
    if not difference.relative <= TOLERANCE:  # written so that NaN fails
        raise InputError(
            f"{out}: not written: for images {list(difference.images)} {FORMATS[format]} gives outputs that differ "
            f"from Paddle's network by {difference.largest:.3g} (largest output {difference.scale:.3g}); rounding "
            f"explains at most {TOLERANCE:g} of the largest. Please report this with the versions of both"
        )


@contextlib.contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A temporary path beside `out`, removed at the end unless it was renamed."""
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    try:
        yield temporary
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_paddle(layer: StageLayer, folder: Path, kind: InputKind) -> None:
    """Write program and parameters into a new folder with Paddle's `jit.save`."""
    folder.mkdir()
    shape = [None, None, None, 3] if kind == "uint8" else [None, 3, None, None]
    paddle.jit.save(layer, str(folder / PROGRAM), input_spec=[paddle.static.InputSpec(shape, kind, INPUT_NAME)])
    if program_file(folder).suffix == ".pdmodel":
        _forget_call_stacks(program_file(folder))


def _forget_call_stacks(program_file: Path) -> None:
    """Remove the source lines and folder names that Paddle 2 stores with some operators."""
    program = paddle.base.core.ProgramDesc(program_file.read_bytes())
    for block in map(program.block, range(program.num_blocks())):
        for operator in map(block.op, range(block.op_size())):
            if operator.has_attr("op_callstack"):
                operator.remove_attr("op_callstack")
    program_file.write_bytes(program.serialize_to_string())


def write_onnx(network: Network, file: Path, kind: InputKind) -> None:
    import onnx

    from passl_densecl.export.onnx_graph import onnx_model

    onnx.save_model(onnx_model(network, kind), str(file))


def program_file(folder: Path) -> Path:
    """Paddle 3 writes `inference.json`, Paddle 2 `inference.pdmodel`."""
    return next(folder / (PROGRAM + end) for end in (".json", ".pdmodel") if (folder / (PROGRAM + end)).is_file())


def paddle_runtime(folder: Path) -> Runtime:
    """The written model in paddle.inference, on the CPU."""
    from paddle.inference import Config, create_predictor

    config = Config(str(program_file(folder)), str(folder / f"{PROGRAM}.pdiparams"))
    config.disable_glog_info()
    predictor = create_predictor(config)
    handle = predictor.get_input_handle(predictor.get_input_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        handle.reshape(images.shape)
        handle.copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    return Runtime(run, predictor.get_output_names()[0])


def onnx_runtime(file: Path) -> Runtime:
    """The written model in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return Runtime(lambda images: np.asarray(session.run(None, {INPUT_NAME: images})[0]), session.get_outputs()[0].name)


def compare(
    runtime: Runtime, layer: StageLayer, kind: InputKind, size: int, photo: np.ndarray | None = None
) -> tuple[list[Difference], np.ndarray | None]:
    """Run both on noise of several batch and image sizes, and on `photo`, whose output is returned as well."""
    rng = np.random.default_rng(0)
    shapes = ((1, size, size), (2, size, size), (3, size + 17, max(32, size - 15)))
    batches = [("noise", rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]
    batches += [] if photo is None else [("photo", photo[None])]
    differences, output = [], None
    for what, images in batches:
        given = images if kind == "uint8" else normalized(images)
        with paddle.no_grad():
            expected = layer(to_tensor(given)).numpy()
        output = runtime.run(given)
        if output.shape != expected.shape:
            raise InputError(
                f"the exported model gives {list(output.shape)} for {list(given.shape)}, not {list(expected.shape)}"
            )
        largest = float(np.abs(output.astype("float64") - expected).max())
        differences.append(Difference(given.shape, largest, float(np.abs(expected).max()), what))
    return differences, None if photo is None else output


def normalized(images: np.ndarray) -> np.ndarray:
    """uint8 RGB (B, height, width, 3), 0..255 → float32 (B, 3, height, width), by ImageNet's mean and deviation."""
    scaled = (images.astype("float32") - np.asarray(PIXEL_MEAN, "float32")) / np.asarray(PIXEL_STD, "float32")
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def snippet(out: Path, format: str, info: dict[str, Any], size: int, file: str = "photo.jpg") -> str:
    """Python lines that run the exported model on one photograph, with only OpenCV and the runtime."""
    lines = ["import cv2"]
    if info["input"]["dtype"] == "float32":
        lines.append("import numpy as np")
    if format == "onnx":
        lines.append("import onnxruntime")
    else:
        lines.append("from paddle.inference import Config, create_predictor")
    lines += ["", f'image = cv2.cvtColor(cv2.resize(cv2.imread("{file}"), ({size}, {size})), cv2.COLOR_BGR2RGB)']
    if info["input"]["dtype"] == "uint8":
        lines.append("images = image[None]  # uint8 RGB, (1, height, width, 3)")
    else:
        lines.append(f"image = (image - np.float32({list(PIXEL_MEAN)})) / np.float32({list(PIXEL_STD)})")
        lines.append("images = np.ascontiguousarray(image.transpose(2, 0, 1)[None])  # (1, 3, height, width)")
    if format == "onnx":
        lines.append(f'session = onnxruntime.InferenceSession("{out}")')
        lines.append(f'(output,) = session.run(None, {{"{INPUT_NAME}": images}})')
    else:
        lines.append(f'predictor = create_predictor(Config("{program_file(out)}", "{out / PROGRAM}.pdiparams"))')
        lines.append(f'predictor.get_input_handle("{INPUT_NAME}").copy_from_cpu(images)')
        lines.append("predictor.run()")
        lines.append(f'output = predictor.get_output_handle("{info["output"]["name"]}").copy_to_cpu()')
    shape = ", ".join(info["output"]["axes"])
    return "\n".join([*lines, f"print(output.shape)  # ({shape})"])
