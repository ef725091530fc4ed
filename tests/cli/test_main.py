"""The command `densecl`: its verbs, their help, and the older lines that mean the same."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from passl_densecl import __version__
from passl_densecl.cli.command import WIDTH
from passl_densecl.cli.main import GROUPS, VERBS, main, usage, verb_of
from passl_densecl.config.packaged import packaged_configs
from tests.commands import understood

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", VERBS)
def test_every_option_says_what_it_is_and_its_default(name):
    parser = verb_of(name).parser(f"densecl {name}")
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= WIDTH
    places = [action for action, _ in parser.places]
    formatter = parser._get_formatter()
    for action in parser._actions:
        assert action.help, f"{action.option_strings}: no help"
        if action.option_strings and action.nargs != 0 and not action.required and action not in places:
            assert "default" in str(formatter._get_help_string(action)), f"{action.option_strings}: no default"
        assert not any("_" in option for option in action.option_strings if option != "--remove_prefix")


@pytest.mark.parametrize("name", VERBS)
def test_the_examples_of_a_help_are_understood(name):
    text = verb_of(name).parser(f"densecl {name}").format_help()
    examples = re.findall(r"^  (densecl .+)$", text.partition("examples:\n")[2], re.MULTILINE)
    assert examples or name in ("config ls",)
    for line in examples:
        assert understood(shlex.split(line))[0] == name


SAME = """
python tools/train.py -c configs/densecl/densecl_r50.yaml -o data.root=photos --resume auto
    densecl train configs/densecl/densecl_r50.yaml data.root=photos --resume
python tools/extract_weight.py output/densecl_r50 --output w.pdparams --remove_prefix
    densecl extract --weights output/densecl_r50 --output w.pdparams --remove-prefix
python tools/visualize.py match a.jpg b.jpg --weights W --top 9
    densecl plot match W a.jpg b.jpg --count 9
python tools/visualize.py embedding D --weights W --images 9
    densecl plot embedding W D --count 9
python tools/visualize.py views CONFIG --images 9 --root D
    densecl plot views CONFIG --count 9 --images D
python tools/visualize.py schedule CONFIG --images 9
    densecl plot schedule CONFIG --count 9
python tools/visualize.py report RUN --root D
    densecl report RUN --images D
python tools/evaluate.py knn --weights W --train a --val b --output F.json
    densecl eval knn W --train a --val b --json F.json
python tools/evaluate.py svm --weights W --root D --train a --test b
    densecl eval svm W --images D --train a --test b
python tools/evaluate.py correspondence --weights W --images D --pairs 9
    densecl eval correspondence W --images D --count 9
python tools/embed.py D --weights W --output F.npz
    densecl embed W --images D --output F.npz
python tools/export.py W OUT.onnx --format onnx --stem_stride 2
    densecl export W OUT.onnx --format onnx --stem-stride 2
python tools/convert_weight.py IN OUT.pkl --to detectron2
    densecl convert IN OUT.pkl --to detectron2
python tools/check_data.py D --labelled
    densecl data check --images D --labeled
python tools/pack_data.py D D.lmdb --shorter_side 256
    densecl data pack D --output D.lmdb --shorter-side 256
python tools/transfer.py prepare --engine detectron2 --weights W --output D
    densecl transfer prepare W --toolbox detectron2 --output D
python tools/model_info.py CONFIG --size 64
    densecl info CONFIG --size 64
""".strip().splitlines()  # a line of before 0.2.0, and below it the line of now


@pytest.mark.parametrize(("old", "new"), zip(SAME[::2], SAME[1::2], strict=True), ids=range(len(SAME) // 2))
def test_older_lines_mean_the_same(old, new):
    (old_verb, before), (new_verb, after) = understood(shlex.split(old)), understood(shlex.split(new))
    assert old_verb == new_verb
    if new_verb == "train":
        from passl_densecl.cli.train import experiment

        assert experiment(before) == experiment(after)
        before.words = after.words = before.override = after.override = before.config = after.config = None
    assert before == after


def test_a_config_is_found_by_its_name(capsys):
    assert main(["config", "ls"]) == 0
    listed = capsys.readouterr().out
    assert {line.split()[0] for line in listed.splitlines()} == set(packaged_configs())
    assert main(["train", "densecl_r50", "photos", "epochs=7", "--check"]) == 0
    said = capsys.readouterr().out
    assert "root: photos" in said
    assert "epochs: 7" in said
    assert main(["train", "densecl_r18", "--check"]) == 2
    assert "several have this name: 'demo/densecl_r18', 'small/densecl_r18'" in capsys.readouterr().err
    assert main(["train", "densecl_r5", "--check"]) == 2
    assert "did you mean 'densecl_r50'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", packaged_configs())
def test_every_packaged_config_is_valid(name, capsys):
    assert main(["train", name, "--check"]) == 0
    capsys.readouterr()


def test_a_config_is_copied_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "cp", "small/densecl_r18"]) == 0
    assert (tmp_path / "densecl_r18.yaml").read_bytes() == packaged_configs()["small/densecl_r18"].read_bytes()
    assert main(["config", "cp", "small/densecl_r18"]) == 2
    assert "exists already: choose another name, or add --overwrite" in capsys.readouterr().err
    assert main(["config", "cp", "small/densecl_r18", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evl"], "no verb 'evl'; did you mean 'eval'?"),
        (["eval", "knnn"], "no verb 'eval knnn'; did you mean 'eval knn'?"),
        (["train", "small/densecl_r18", "a", "b"], "unexpected 'b' after CONFIG and DATA"),
        (["train"], "which experiment?"),
        (["train", "moco_clas_r50", "nowhere"], "takes DATA/train and DATA/val, but train and val is missing"),
        (["train", "densecl_r50", "--devices", "cpu:x"], "expected numbers of GPUs"),
        (["train", "densecl_r50", "--devices", "0,1"], "this Paddle"),
        (["train", "densecl_r50", "--devices", "cpu:2", "--nnodes", "2"], "--nnodes 2 needs --rank R (0 to 1)"),
        (["train", "--resume", "nowhere"], "--resume nowhere: no run folder"),
        (["eval", "knn", "--train", "a", "--val", "b"], "--weights W is missing"),
        (["extract", "a", "b"], "unexpected 'b'"),
        (["train", "densecl_r50", "--divices", "cpu:2"], "unknown option --divices; did you mean '--devices'?"),
        (["train", "densecl_r50", "--lr", "1"], "unknown option --lr; write optimizer.lr=VALUE"),
        (["train", "densecl_r50", "learning_rate=1", "--check"], "unknown key; it is called optimizer.lr here"),
        (["train", "densecl_r50", "--batch_size", "8"], "unknown option --batch_size; write batch_size=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, capsys):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_groups_list_their_verbs(capsys):
    for group in GROUPS:
        assert main([group, "--help"]) == 0
        listed = capsys.readouterr().out
        assert all(verb in listed for verb in VERBS if verb.startswith(group + " "))
    assert max(map(len, usage().splitlines())) <= WIDTH
    done = subprocess.run(
        [sys.executable, "-m", "passl_densecl", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == f"passl_densecl {__version__}\n"


def test_positions_and_options_fill_the_same_places():
    parser = verb_of("plot match").parser("densecl plot match")
    parser.raises = True
    by_place = parser.read(["W", "a.jpg", "b.jpg"])
    by_option = verb_of("plot match").parser().read(["--images", "a.jpg", "b.jpg", "--weights", "W"])
    assert by_place == by_option == argparse.Namespace(**vars(by_place))
    assert (by_place.weights, by_place.images) == ("W", [Path("a.jpg"), Path("b.jpg")])
