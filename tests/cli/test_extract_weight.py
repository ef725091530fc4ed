"""tools/extract_weight.py, run as a user runs it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.vision.models.resnet import BasicBlock, ResNet

from passl_densecl.config import load_config
from passl_densecl.weights.card import Parent, run_card
from passl_densecl.weights.files import read_arrays, read_card
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.vocabulary import backbone_shapes
from passl_densecl.weights.writing import write_pickle, write_weights
from tests.commands import call_tool

ROOT = Path(__file__).resolve().parents[2]
Arrays = dict[str, np.ndarray]


def backbone(seed: int, depth: int = 18) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.full(shape, abs(rng.normal()), "f4") for name, shape in backbone_shapes(depth).items()}


def same(a: Arrays, b: Arrays) -> bool:
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The tool where Paddle cannot be imported."""
    return call_tool("extract_weight", *arguments, cwd=cwd, without="paddle")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two pre-training checkpoints; the second is newer."""
    run_folder = tmp_path_factory.mktemp("output") / "densecl"
    for step, seed in ((20, 1), (10, 7)):
        folder = run_folder / "checkpoints" / f"epoch_{step:04}"
        folder.mkdir(parents=True)
        arrays = {f"query_encoder.backbone.{name}": array for name, array in backbone(seed).items()}
        arrays |= {f"key_encoder.backbone.{name}": array for name, array in backbone(seed + 1).items()}
        arrays["query_encoder.global_head.0.weight"] = np.zeros((2, 2), "f4")
        arrays["global_queue.vectors"] = np.zeros((2, 4), "f4")
        write_pickle(folder / "model.pdparams", arrays)
        (folder / "state.json").write_text(f'{{"step": {step}}}')
    return run_folder / "checkpoints" / "epoch_0020"


def test_a_checkpoint_becomes_a_backbone_that_paddle_loads(checkpoint, tmp_path):
    output = tmp_path / "r18.pdparams"
    block = "import sys, runpy; sys.modules['paddle'] = None; sys.argv = sys.argv[1:]"
    block += "; runpy.run_path(sys.argv[0], run_name='__main__')"  # in a process of its own: truly without Paddle
    words = ("tools/extract_weight.py", checkpoint, "--output", output, "--remove_prefix")
    done = subprocess.run(
        [sys.executable, "-c", block, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"read     {checkpoint / 'model.pdparams'} (pre-training state)" in done.stdout
    assert "kept     100 arrays: ResNet-18, 11.18 M weights" in done.stdout
    assert "dropped  key_encoder.backbone. 100, query_encoder.global_head. 1, global_queue. 1" in done.stdout
    assert f"wrote    {output}, names like conv1.weight" in done.stdout
    assert f"--pretrained {output}\n" in done.stdout

    network = ResNet(BasicBlock, 18, num_classes=0, with_pool=False)
    missing, unexpected = network.set_state_dict(paddle.load(str(output)))
    assert not missing
    assert not unexpected
    assert same({name: np.array(tensor.numpy()) for name, tensor in network.state_dict().items()}, backbone(1))


def test_the_run_folder_means_its_newest_checkpoint(checkpoint, tmp_path):
    assert run(checkpoint.parents[1], "--output", tmp_path / "w.pdparams", "--remove-prefix").returncode == 0
    assert same(read_arrays(tmp_path / "w.pdparams"), backbone(1))


def test_the_key_encoder_and_a_prefix_can_be_chosen(checkpoint, tmp_path):
    output = tmp_path / "w.pdparams"
    assert run(checkpoint, "--output", output, "--remove_prefix", "--encoder", "key").returncode == 0
    assert same(read_arrays(output), backbone(2))
    assert (
        run(
            checkpoint, "--output", output, "--remove_prefix", "--overwrite", "--prefix", "query_encoder.backbone"
        ).returncode
        == 0
    )
    assert same(read_arrays(output), backbone(1))


def test_without_remove_prefix_names_begin_with_backbone(checkpoint, tmp_path):
    output = tmp_path / "w.pdparams"
    done = run(checkpoint, "--output", output)
    assert "names like backbone.conv1.weight" in done.stdout
    assert same(read_arrays(output), {f"backbone.{name}": array for name, array in backbone(1).items()})
    assert run(output, "--output", tmp_path / "plain.pdparams", "--remove_prefix").returncode == 0
    assert same(read_arrays(tmp_path / "plain.pdparams"), backbone(1))


def test_a_second_extraction_changes_no_bit(checkpoint, tmp_path):
    first, second = tmp_path / "first.pdparams", tmp_path / "second.pdparams"
    run(checkpoint, "--output", first, "--remove_prefix")
    done = run(first, "--output", second, "--remove_prefix")
    assert "dropped  nothing" in done.stdout
    assert first.read_bytes() == second.read_bytes()
    run(checkpoint, "--output", second, "--remove_prefix")  # over an older file
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_paddle_saved_gives_the_same_values(checkpoint, tmp_path):
    network = ResNet(BasicBlock, 18, num_classes=10)
    load_strict(network, backbone(1), may_miss={"fc.weight", "fc.bias"})
    content: dict[str, Any] = {"epoch": 1, "state_dict": network.state_dict(), "optimizer": {}}
    paddle.save(content, str(tmp_path / "epoch_1.pd"))
    done = run(tmp_path / "epoch_1.pd", "--output", tmp_path / "a.pdparams", "--remove_prefix")
    assert "dropped  fc. 2" in done.stdout
    assert same(read_arrays(tmp_path / "a.pdparams"), backbone(1))
    card = read_card(tmp_path / "a.pdparams")
    assert card is not None
    assert (card.kind, card.depth, card.stem_stride, card.last_stride) == ("backbone", 18, None, None)
    assert card.parents == (Parent.of(tmp_path / "epoch_1.pd", "file without a card"),)


def test_strides_epoch_and_origin_travel_with_the_backbone(checkpoint, tmp_path):
    config = load_config(ROOT / "configs/demo/densecl_r18.yaml", ["model.stem_stride=2", "model.last_stride=1"])
    source = checkpoint / "model.pdparams"
    with_card = tmp_path / "far" / "from.pdparams"
    with_card.parent.mkdir()
    write_pickle(with_card, read_arrays(source), card=run_card(config, epoch=4, step=20))
    for path, encoder in ((with_card, "query"), (with_card, "key")):
        done = run(path, "--output", tmp_path / "w.pdparams", "--remove_prefix", "--encoder", encoder, "--overwrite")
        assert "note     trained with model.stem_stride 2, model.last_stride 1: passl_densecl reads" in done.stdout
        card = read_card(tmp_path / "w.pdparams")
        assert card is not None
        assert (card.kind, card.encoder, card.depth) == ("backbone", encoder, 18)
        assert (card.stem_stride, card.last_stride, card.epoch, card.step) == (2, 1, 4, 20)
        assert card.parents == (Parent.of(path, "pre-training checkpoint"),)
        assert card.config == run_card(config, epoch=4, step=20).to_dict()["config"]
    first = tmp_path / "w.pdparams"
    run(first, "--output", tmp_path / "v.pdparams")
    run(tmp_path / "v.pdparams", "--output", tmp_path / "u.pdparams", "--remove_prefix")
    assert (tmp_path / "u.pdparams").read_bytes() == first.read_bytes()  # a copy of a backbone stays what it was


def test_a_checkpoint_in_torchs_format_is_read_as_well(checkpoint, tmp_path):
    write_weights(tmp_path / "x.pth", {"state_dict": read_arrays(checkpoint / "model.pdparams")})
    done = run(tmp_path / "x.pth", "--output", tmp_path / "w.pdparams", "--remove_prefix")
    assert "(pre-training state)" in done.stdout, done.stderr
    assert same(read_arrays(tmp_path / "w.pdparams"), backbone(1))


def test_resnet50_is_led_to_its_linear_evaluation(tmp_path):
    write_pickle(tmp_path / "in.pdparams", backbone(3, depth=50))
    done = run("in.pdparams", "--output", "my weights.pdparams", "--remove_prefix", cwd=tmp_path)
    assert "kept     265 arrays: ResNet-50, 23.51 M weights" in done.stdout
    assert "next     densecl train moco_clas_r50 --pretrained 'my weights.pdparams'\n" in done.stdout


def refused(*arguments: object, cwd: Path = ROOT) -> str:
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("extract_weight.py: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_input_is_never_written_over(tmp_path):
    path = tmp_path / "w.pdparams"
    write_pickle(path, {f"backbone.{name}": array for name, array in backbone(1).items()})
    before = path.read_bytes()
    (tmp_path / "link.pdparams").symlink_to(path)
    for output in (path, "w.pdparams", f"../{tmp_path.name}/w.pdparams", "link.pdparams"):
        assert "is the file to read; choose another name" in refused(
            path, "--output", output, "--remove_prefix", "--overwrite", cwd=tmp_path
        )
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.pdparams", "w.pdparams"]


def test_mistakes_are_one_line_and_write_nothing(checkpoint, tmp_path):
    output = tmp_path / "w.pdparams"
    assert f"did you mean '{checkpoint}'" in refused(f"{checkpoint}0", "--output", output)
    assert "must end in .pdparams" in refused(checkpoint, "--output", tmp_path / "w.pth")
    assert f"the folder {tmp_path / 'no'} does not exist" in refused(
        checkpoint, "--output", tmp_path / "no" / "w.pdparams"
    )
    assert "no weights in this folder" in refused(tmp_path, "--output", output)
    assert "no backbone behind the prefix 'x'" in refused(checkpoint, "--output", output, "--prefix", "x")
    (tmp_path / "bad.pd").write_bytes(b"PK\x03\x04")
    assert "zip file" in refused(tmp_path / "bad.pd", "--output", output)
    assert not output.exists()


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch '{tmp_path / 'ran'}'",)

    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({**backbone(1), "fc.weight": Hostile()}, 4))
    message = refused(tmp_path / "x.pdparams", "--output", tmp_path / "w.pdparams", "--remove_prefix")
    assert "asks for posix.system" in message
    assert "nothing in it was run" in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pdparams"]
