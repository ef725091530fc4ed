"""tools/convert_weight.py as a user runs it."""

from __future__ import annotations

import pickle
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.vision.models.resnet import BasicBlock, ResNet

from passl_densecl.cli.main import main
from passl_densecl.weights.convert import STATE_TARGETS, TARGETS
from passl_densecl.weights.files import read_card, read_weights
from passl_densecl.weights.vocabulary import backbone_shapes
from tests.commands import call_tool, understood

ROOT = Path(__file__).resolve().parents[2]
Arrays = dict[str, np.ndarray]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call_tool("convert_weight", *arguments)


def backbone(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in backbone_shapes(18).items()}


@pytest.fixture(scope="module")
def network() -> ResNet:
    return ResNet(BasicBlock, 18, num_classes=5)


@pytest.fixture(scope="module")
def linear(tmp_path_factory, network) -> Path:
    """A linear classifier's checkpoint, as PASSL saves one."""
    state = {name: np.array(tensor.numpy()) for name, tensor in network.state_dict().items()}
    named = {
        f"head.fc_cls.{name[3:]}" if name.startswith("fc.") else f"backbone.{name}": array
        for name, array in state.items()
    }
    path = tmp_path_factory.mktemp("passl") / "epoch_100.pd"
    paddle.save({"epoch": 100, "state_dict": named, "lr_scheduler": {"last_epoch": 3}}, str(path))
    return path


def test_a_passl_classifier_goes_to_torch_and_comes_back_into_paddle(linear, network, tmp_path):
    done = run(linear, tmp_path / "r18.pth", "--to", "torchvision")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:4] == [
        f"read     {linear} (PASSL or OpenSelfSup linear classifier)",
        "kept     100 arrays: ResNet-18, 11.18 M weights, and a classifier of 5 classes",
        "dropped  what lay beside the weights (epoch, lr_scheduler)",
        f"wrote    {tmp_path / 'r18.pth'}, names like conv1.weight",
    ]
    assert "set      with torchvision:" in done.stdout
    content = read_weights(tmp_path / "r18.pth").content
    assert isinstance(content, dict)
    assert content["fc.weight"].shape == (5, 512)
    assert content["bn1.num_batches_tracked"].dtype == np.int64
    card = read_card(tmp_path / "r18.pth")
    assert card is not None
    assert (card.kind, card.names, card.depth) == ("linear classifier", "torchvision", 18)
    assert [parent.file for parent in card.parents] == ["epoch_100.pd"]

    assert run(tmp_path / "r18.pth", tmp_path / "r18.pdparams", "--to", "paddle").returncode == 0
    other = ResNet(BasicBlock, 18, num_classes=5)
    missing, unexpected = other.set_state_dict(paddle.load(str(tmp_path / "r18.pdparams")))
    assert not missing
    assert not unexpected
    network.eval()
    other.eval()
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype("f4"))
    assert np.array_equal(network(images).numpy(), other(images).numpy())


def test_detectron2_reads_the_file_with_numpy_and_pickle_alone(linear, tmp_path):
    done = run(linear, tmp_path / "r18.pkl", "--to", "detectron2")
    assert "dropped  classifier (no place for it in detectron2) 2, what lay beside" in done.stdout
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in done.stdout
    with open(tmp_path / "r18.pkl", "rb") as file:
        content = pickle.load(file, encoding="latin1")
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in content["model"].values())
    assert "stem.conv1.norm.running_var" in content["model"]


def test_info_says_what_a_file_is(linear, tmp_path):
    done = run(linear, "--info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "state_dict/backbone.layer1.0.conv1.weight" in done.stdout
    assert "[64, 64, 3, 3]" in done.stdout
    run(linear, tmp_path / "d2.pkl", "--to", "detectron2")
    told = run(tmp_path / "d2.pkl", "--info").stdout
    assert "card     backbone" in told
    assert "detectron2" in told
    assert "epoch_100.pd" in told


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """What the command says when it refuses, in this process."""

    def refused(*arguments: object) -> str:
        assert main(["convert", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("densecl convert: ")
        assert said.err.count("\n") == 1
        return said.err

    return refused


def test_mistakes_are_one_line_and_write_nothing(refused, linear, tmp_path):
    assert "give IN, OUT and --to" in refused("x.pth")
    assert "writes nothing" in refused("x.pth", "y.pth", "--info")
    assert "must end in .pkl" in refused(linear, tmp_path / "w.pth", "--to", "detectron2")
    assert "does not exist" in refused(tmp_path / "no.pd", tmp_path / "w.pkl", "--to", "detectron2")
    assert "no names of PaddleDetection in the file; it has those of paddle.vision" in refused(
        linear, tmp_path / "w.pkl", "--to", "detectron2", "--from", "paddledetection"
    )
    assert "no key encoder" in refused(linear, tmp_path / "w.pkl", "--to", "detectron2", "--encoder", "key")
    assert "no whole training state" in refused(linear, tmp_path / "w.pdparams", "--to", "state")
    assert "does not exist" in refused(linear, tmp_path / "no" / "w.pkl", "--to", "detectron2")
    (tmp_path / "text.pth").write_text("<html>")
    assert "text.pth" in refused(tmp_path / "text.pth", tmp_path / "w.pkl", "--to", "detectron2")
    (tmp_path / "cut.pd").write_bytes(linear.read_bytes()[:-9000])
    assert "cut.pd" in refused(tmp_path / "cut.pd", tmp_path / "w.pkl", "--to", "detectron2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pd", "text.pth"]


def commands(name: str) -> list[str]:
    blocks = re.findall(
        r"^```bash\n(.*?)^```$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return "".join(blocks).splitlines()


def test_the_commands_of_the_page_are_understood():
    assert commands("weights.md") == commands("weights_cn.md")
    converted, trained = set(), 0
    for line in commands("weights.md"):
        words = shlex.split(line)
        if words[0] == "densecl":
            verb, args = understood(words)
            if verb == "convert" and args.to:
                assert args.output.suffix in (TARGETS | STATE_TARGETS)[args.to].suffixes
                converted.add(args.to)
            trained += verb == "train" and bool(args.load or args.pretrained)
        else:
            assert words[1:3] == ["-m", "pytest"]
            tests = (ROOT / words[3]).read_text(encoding="utf-8")
            assert re.search(rf"def test_\w*{words[5]}", tests)
    assert {"detectron2", "torchvision", "mmpretrain", "paddleclas", "paddledetection", "paddle", "state"} <= converted
    assert trained == 2
