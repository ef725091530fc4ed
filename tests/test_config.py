"""Configs: the shipped ones are the published recipes, and all errors in a file are reported together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from passl_densecl import transforms as T
from passl_densecl.config import LinearConfig, PretrainConfig, dump_config, load_config
from passl_densecl.errors import InputError
from passl_densecl.schedules import Cosine, StepDecay

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*/*.yaml"))

GOOD = """\
task: pretrain
name: run
model: {depth: 18, queue_len: auto}
data:
  root: photos
  transforms:
    - {name: RandomResizedCrop, size: 64}
    - {name: GaussianBlur}
batch_size: 8
micro_batch_size: 4
epochs: 2
optimizer: {lr: 0.1, weight_decay: 1e-4}
schedule: {name: cosine}
"""


@pytest.fixture
def load(tmp_path):
    """Loads GOOD with replacements, additions and overrides."""

    def load(*overrides: str, replace: dict[str, str] | None = None, extra: str = ""):
        text = GOOD
        for old, new in (replace or {}).items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "mine.yaml"
        path.write_text(text + extra)
        return load_config(path, overrides)

    return load


@pytest.fixture
def problems(load):
    """The problems that loading reports: {key: message}."""

    def problems(*overrides: str, **changes) -> dict[str, str]:
        with pytest.raises(InputError) as error:
            load(*overrides, **changes)
        head, *lines = str(error.value).split("\n")
        assert head.endswith(f"mine.yaml: {len(lines)} problem{'s' if len(lines) > 1 else ''}")
        assert lines
        found = [line.strip().split("   ", 1) for line in lines]
        return {key: message.strip() for key, message in found}

    return problems


# ---------------------------------------------------------------- shipped configs


def test_configs_ship():
    names = {path.relative_to(ROOT / "configs").as_posix() for path in SHIPPED}
    assert {"densecl/densecl_r50.yaml", "moco/moco_clas_r50.yaml", "moco/moco_v2_r50.yaml"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_reads_back_to_the_same_value(path, tmp_path):
    config = load_config(path)
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again) == config
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#"), "opens with what it reproduces"
    name = path.stem if path.parent.name not in ("demo", "small") else f"{path.parent.name}/{path.stem}"
    assert f"densecl train {name} " in text, "contains its command"


def test_names_of_runs_differ():
    names = [load_config(path).name for path in SHIPPED]
    assert len(set(names)) == len(names)


PRETRAIN_RECIPES = [  # file, depth, lr, epochs, loss_lambda
    ("densecl/densecl_r50", 50, 0.03, 200, 0.5),
    ("densecl/densecl_r101", 101, 0.03, 200, 0.5),
    ("densecl/densecl_r50_coco_800e", 50, 0.3, 800, 0.5),
    ("densecl/densecl_r50_coco_1600e", 50, 0.3, 1600, 0.5),
    ("moco/moco_v2_r50", 50, 0.03, 200, 0.0),
]


@pytest.mark.parametrize(("name", "depth", "lr", "epochs", "loss_lambda"), PRETRAIN_RECIPES)
def test_pretraining_recipe_is_the_published_one(name, depth, lr, epochs, loss_lambda):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert isinstance(config, PretrainConfig)
    assert (config.batch_size, config.micro_batch_size, config.micro_batch_count) == (256, 32, 8)
    assert (config.base_lr, config.optimizer.lr, config.epochs) == (lr, lr, epochs)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert config.schedule == Cosine(per="epoch")
    model = config.model
    assert (model.depth, model.stem_stride, model.last_stride) == (depth, 4, 2)
    assert (model.temperature, model.momentum, model.queue_len) == (0.2, 0.999, 65_536)
    assert (model.hidden_dim, model.out_dim, model.num_grid) == (2048, 128, None)
    assert (model.loss_lambda, model.loss_lambda_warmup_steps) == (loss_lambda, 0)
    assert config.data.transforms == (
        T.RandomResizedCrop(size=224, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)),
        T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        T.RandomGrayscale(p=0.2),
        T.GaussianBlur(sigma=(0.1, 2.0), p=0.5),
        T.RandomHorizontalFlip(p=0.5),
    )
    assert not config.amp.enabled


@pytest.mark.parametrize("depth", [50, 101])
def test_linear_recipe_is_the_published_one(depth):
    config = load_config(ROOT / "configs" / "moco" / f"moco_clas_r{depth}.yaml")
    assert isinstance(config, LinearConfig)
    assert (config.model.depth, config.batch_size, config.epochs) == (depth, 256, 100)
    assert (config.base_lr, config.optimizer.momentum, config.optimizer.weight_decay) == (30.0, 0.9, 0.0)
    assert config.schedule == StepDecay(milestones=(60, 80), gamma=0.1)
    assert config.data.train_transforms == (
        T.RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        T.RandomHorizontalFlip(p=0.5),
    )
    assert config.data.val_transforms == (T.Resize(size=256), T.CenterCrop(size=224))


def test_the_rate_scales_with_the_batch(load):
    config = load("batch_size=64", "optimizer.reference_batch_size=256")
    assert config.base_lr == pytest.approx(0.1 / 4)


# ---------------------------------------------------------------- values


def test_numbers_in_every_notation_are_read(load):
    config = load(replace={"weight_decay: 1e-4": "weight_decay: 1e-4, momentum: .5"})
    assert config.optimizer.weight_decay == 1e-4
    assert config.optimizer.momentum == 0.5
    assert load("optimizer.lr=3E-2").optimizer.lr == 0.03
    assert load("optimizer.lr=1").optimizer.lr == 1.0  # a whole number is a number


def test_a_config_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load().epochs = 3


def test_all_problems_are_reported_together(problems):
    found = problems(
        replace={
            "depth": "dept",
            "lr: 0.1": "lr: high",
            "name: cosine": "name: cosin",
            "size: 64": "size: large",
            "name: GaussianBlur": "name: GausianBlur",
        },
        extra="epochs: 3\nseeed: 1\namp: {enabled: on}\n",
    )
    assert found["model.dept"] == "unknown key; did you mean 'depth'?"
    assert found["seeed"] == "unknown key; did you mean 'seed'?"
    assert found["model.depth"].startswith("missing")
    assert found["optimizer.lr"] == "expected a number, got 'high'"
    assert found["data.transforms.0.size"] == "expected a whole number, got 'large'"
    assert found["data.transforms.1"].startswith("expected 'RandomResizedCrop', 'ColorJitter'")
    assert found["data.transforms.1"].endswith("did you mean 'GaussianBlur'?")
    assert found["schedule"].endswith("did you mean 'cosine'?")
    assert found["epochs"] == "given twice, in lines 11 and 14; keep one"
    assert found["amp.enabled"] == "expected true or false, got 'on'"
    assert len(found) == 9


INVALID = [  # what is replaced, key, message
    ({"batch_size: 8\n": "batch_size: 8.5\n"}, "batch_size", "expected a whole number, got 8.5"),
    ({"epochs: 2": "epochs: true"}, "epochs", "expected a whole number, got True"),
    ({"epochs: 2": "epochs: 0"}, "epochs", "expected at least 1, got 0"),
    ({"epochs: 2": "epochs: '2'"}, "epochs", "expected a whole number, got '2'"),
    ({"name: run": "name: a/b"}, "name", "expected one word without slashes or spaces, got 'a/b'"),
    ({"name: run": "name: 3"}, "name", "expected a text, got 3; put it in quotes"),
    ({"depth: 18": "depth: 20"}, "model.depth", "expected 18, 34, 50, 101 or 152, got 20"),
    ({"depth: 18": "depth: 18, momentum: 1.0"}, "model.momentum", "expected less than 1, got 1.0"),
    ({"depth: 18": "depth: 18, temperature: 0"}, "model.temperature", "expected more than 0, got 0"),
    ({"depth: 18": "depth: 18, loss_lambda: 1.5"}, "model.loss_lambda", "expected at most 1, got 1.5"),
    (
        {"depth: 18": "depth: 18, num_grid: None"},
        "model.num_grid",
        "expected a whole number, got 'None'; write null for none",
    ),
    (
        {"queue_len: auto": "queue_len: auot"},
        "model.queue_len",
        "expected a whole number or 'auto', got 'auot'; did you mean 'auto'?",
    ),
    ({", queue_len: auto": ""}, "model.queue_len", "missing: K, the number of negatives; auto fits it to the data set"),
    ({"model: {depth: 18, queue_len: auto}": "model: 18"}, "model", "expected a section of keys, got 18"),
    ({"{name: GaussianBlur}": "GaussianBlur"}, "data.transforms.1", "expected a section of keys, got 'GaussianBlur'"),
    ({"{name: GaussianBlur}": "{p: 0.5}"}, "data.transforms.1", "expected a mapping with a 'name', got {'p': 0.5}"),
    (
        {"name: GaussianBlur": "name: GaussianBlur, sgima: [1, 2]"},
        "data.transforms.1.sgima",
        "unknown key; did you mean 'sigma'?",
    ),
    ({"name: cosine": "name: step"}, "schedule.milestones", "missing: epochs at which the rate drops"),
    (
        {"task: pretrain": "task: pretrian"},
        "task",
        "expected 'pretrain' or 'linear'; got 'pretrian'; did you mean 'pretrain'?",
    ),
    ({"task: pretrain\n": ""}, "task", "expected 'pretrain' or 'linear'; it is missing"),
]


@pytest.mark.parametrize(("replace", "key", "message"), INVALID, ids=[key for _, key, _ in INVALID])
def test_an_invalid_value_is_explained(problems, replace, key, message):
    assert problems(replace=replace) == {key: message}


def test_keys_of_the_other_task_are_unknown(load, tmp_path):
    linear = load_config(ROOT / "configs" / "moco" / "moco_clas_r50.yaml")
    path = tmp_path / "linear.yaml"
    path.write_text(dump_config(linear) + "micro_batch_size: 32\n")
    with pytest.raises(InputError, match="micro_batch_size   unknown key"):
        load_config(path)


def test_the_batch_must_be_divisible_and_fit_into_the_queue(problems):
    found = problems("micro_batch_size=3", "model.queue_len=4")
    assert set(found) == {"micro_batch_size", "model.queue_len"}
    assert found["micro_batch_size"] == "3 does not divide batch_size 8; try micro_batch_size 2, or batch_size 9"
    assert found["model.queue_len"].startswith("4 is less than batch_size 8")
    assert found["model.queue_len"].endswith("try 32 or auto")


def test_matches_by_geometry_need_one_crop_that_comes_first(load, problems):
    geometry = ("model.dense_matches=geometry",)
    assert load(*geometry).matched_side == 2
    assert load(*geometry, "model.num_grid=7").matched_side == 7
    assert load(*geometry, "model.loss_lambda=0").matched_side is load().matched_side is None
    crop = "{name: RandomResizedCrop, size: 64}"
    for views in (f"[{{name: RandomHorizontalFlip}}, {crop}]", f"[{crop}, {{name: CenterCrop, size: 32}}]"):
        found = problems(*geometry, f"data.transforms={views}")
        assert list(found) == ["model.dense_matches"]
        assert (
            "begin with RandomResizedCrop, the only one to crop or resize, got Random" in found["model.dense_matches"]
        )


def test_too_few_values_for_batch_norm(load, problems):
    """32 px views have a 1×1 map in the last stage, 33 px ones 2×2."""
    found = problems("micro_batch_size=1", "data.transforms.0.size=32")
    assert found["micro_batch_size"].startswith("micro_batch_size 1 × the last stage's map are 1 value a channel for")
    assert "would put out a constant; set a larger micro_batch_size" in found["micro_batch_size"]
    sizes = {(32, 8): 8, (33, 2): 8, (64, 4): 16, (224, 1): 49}
    for (size, micro_batch), values in sizes.items():
        config = load(f"micro_batch_size={micro_batch}", f"data.transforms.0.size={size}")
        assert config.batch_norm_values == values
        assert bool(config.batch_norm_warning()) is (values < 16)
    assert load("data.transforms.0.size=32", "micro_batch_size=1", "model.last_stride=1").batch_norm_values == 4
    assert load("data.transforms.0.size=32", "micro_batch_size=1", "model.stem_stride=1").batch_norm_values == 16
    assert load("data.transforms=[{name: GaussianBlur}]").batch_norm_warning() is None  # no size: said elsewhere


def test_suggested_values_are_valid(load):
    assert load("micro_batch_size=2").micro_batch_count == 4
    assert load("micro_batch_size=3", "batch_size=9").micro_batch_count == 3
    assert load("model.queue_len=32").model.queue_len == 32


# ---------------------------------------------------------------- overrides


def test_overrides_change_keys_at_every_depth(load):
    config = load(
        "model.depth=50",
        "data.root=with space/and=sign",
        "data.transforms.0.size=32",
        "data.transforms.1={name: RandomGrayscale, p: 0.3}",
        "model.num_grid=null",
        "optimizer.lr=1e-2",
        "epochs=3",
        "epochs=5",
    )
    assert config.model.depth == 50
    assert config.data.root == "with space/and=sign"
    assert config.data.transforms == (T.RandomResizedCrop(size=32), T.RandomGrayscale(p=0.3))
    assert config.optimizer.lr == 0.01
    assert config.epochs == 5  # the last one wins


def test_an_override_can_add_a_section(load):
    assert "amp" not in GOOD
    assert load("amp.enabled=true").amp.enabled
    assert load("checkpoint.keep=7").checkpoint.keep == 7


def test_invalid_overrides_are_reported_with_the_rest(problems):
    found = problems(
        "modle.depth=50",
        "model.dpth=18",
        "data.transforms.7.size=32",
        "data.transforms.2=x",
        "epochs.x=1",
        "lr",
        "=3",
        "a..b=1",
    )
    assert found["modle"] == "unknown key; did you mean 'model'?"
    assert found["model.dpth"] == "unknown key; did you mean 'depth'?"
    assert found["-o data.transforms.7.size"] == "the file has no section 'data.transforms.7'"
    assert found["-o data.transforms.2"] == "expected a position from 0 to 1, got '2'"
    assert found["-o epochs.x"] == "the file has no section 'epochs'"
    for wrong in ("lr", "=3", "a..b=1"):
        assert found[f"-o {wrong}"] == "expected key=value, for example -o data.root=photos"
    assert len(found) == 8


TEXTS = ["photos #2", "2024", "1e3", "true", "~/../x", "a: b", "[1", "'quoted'", " blanks ", "*", "null", "010"]
TEXTS += ["price $5", "50%$", os.fsdecode(b"caf\xe9"), "中\u2028文", "new\nline", "-o", "\\server\\share"]


def test_texts_in_overrides_are_taken_as_they_are(load, tmp_path):
    """Also through the config.yaml of a run, and in keys inside sections and lists."""
    for text in TEXTS:
        config = load(f"data.root={text}", f"output_dir={text}/x")
        assert config.data.root == os.path.expanduser(text)
        (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
        assert load_config(tmp_path / "again.yaml") == config
    assert load("name=2024").run_dir == Path("output/2024")
    assert load("data.list_file=null").data.list_file is None
    assert load("evaluation={train: a, val: b}", "evaluation.val=3 #4").evaluation.val == "3 #4"
    linear = load_config(ROOT / "configs/moco/moco_clas_r50.yaml", ["data.train.list_file=1:30", "data.val.root=0x1"])
    assert (linear.data.train.list_file, linear.data.val.root) == ("1:30", "0x1")


def test_variables_and_home_folders_in_paths_are_replaced(load, problems, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", "/mnt/a$b")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("UNSET", raising=False)
    for given, meant in {
        "$DATA_DIR/x": "/mnt/a$b/x",
        "${DATA_DIR}x": "/mnt/a$bx",
        "~/x": "/home/me/x",
        "./~/x": "./~/x",
        "$$UNSET": "$UNSET",
        "$$$$": "$$",
    }.items():
        for config in (load(f"data.root={given}"), load(replace={"root: photos": f"root: '{given}'"})):
            assert config.data.root == meant
            (tmp_path / "again.yaml").write_text(dump_config(config))
            assert load_config(tmp_path / "again.yaml") == config
    for odd in ("~\udce6", "${\udce6}", "~\0", "${\ud800}", "~\ud800", ""):  # what pydantic cannot put into a message
        assert "expected a path" in problems(f"data.root={odd}")["data.root"]
    assert problems("data.root=$UNSET/x", "output_dir=~nobody-of-this-name/x") == {
        "data.root": "expected a path of variables that are set ($UNSET is not; $$ stands for a dollar sign), got "
        "'$UNSET/x'",
        "output_dir": "expected a path below a home folder that exists (./~nobody-of-this-name/x is a folder of this "
        "name), got '~nobody-of-this-name/x'",
    }


def test_merge_keys(load, tmp_path):
    text = GOOD.replace("optimizer: {lr: 0.1, weight_decay: 1e-4}", "optimizer: &o {lr: 0.1, weight_decay: 1e-4}")
    linear = dump_config(load_config(ROOT / "configs/moco/moco_clas_r50.yaml"))
    for old, new in (("  train:\n", "  train: &images\n"), ("  val:\n", "  val:\n    <<: *images\n")):
        assert linear.count(old) == 1
        linear = linear.replace(old, new)
    for key in ("list_file", "extensions", "sixteen_bit", "labels"):
        head, _, tail = linear.rpartition(f"    {key}: ")  # that of val
        linear = head + tail.partition("\n")[2]
    (tmp_path / "linear.yaml").write_text(linear.replace("list_file: null", "list_file: l.txt", 1))
    data = load_config(tmp_path / "linear.yaml").data
    assert (data.train.list_file, data.val.list_file) == ("l.txt", "l.txt")
    assert data.train.root != data.val.root  # its own keys win over those that are merged in
    (tmp_path / "mine.yaml").write_text(text + "amp: {<<: *o}\n")
    with pytest.raises(InputError, match=r"amp\.lr +unknown key"):
        load_config(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text + "amp: {<<: *o, lr: 1, lr: 2}\n")
    with pytest.raises(InputError, match=r"\n  lr +given twice"):
        load_config(tmp_path / "mine.yaml")


AMBIGUOUS = {"010": "8 in YAML 1.1 (octal); write 8 or 10, or '010'", "-0_17": "-15 in YAML 1.1 (octal); write -15 or"}
AMBIGUOUS |= {"1:30": "90 in YAML 1.1 (base 60); write 90, or '1:30'", "12:30:45": "45045 in YAML 1.1"}


@pytest.mark.parametrize("number", AMBIGUOUS)
def test_octal_and_base_60_are_refused(load, number):
    with pytest.raises(InputError, match=re.escape(f"-o seed={number}, line 1: not readable as YAML: {number} stands")):
        load(f"seed={number}")
    with pytest.raises(InputError, match="line 14.*" + re.escape(AMBIGUOUS[number])):
        load(extra=f"seed: {number}\n")
    assert load("seed=0x10").seed == 16  # whose meaning is not in doubt


def test_a_config_from_powershell(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD.replace("photos", "照片"), encoding="utf-16")
    assert load_config(tmp_path / "mine.yaml").data.root == "照片"


def test_an_override_that_is_not_yaml_is_an_error(load):
    with pytest.raises(InputError, match=r"-o epochs=a: b: c, line 1: not readable as YAML"):
        load("epochs=a: b: c")


# ---------------------------------------------------------------- files


def test_a_missing_file_is_an_error_with_a_suggestion(tmp_path):
    (tmp_path / "densecl_r50.yaml").write_text(GOOD)
    with pytest.raises(InputError, match=r"r5\.yaml': no such file.*; did you mean 'densecl_r50.yaml'\?"):
        load_config(tmp_path / "densecl_r5.yaml")
    with pytest.raises(InputError, match=r"no such file, and no folder '.*nowhere'"):
        load_config(tmp_path / "nowhere" / "densecl_r50.yaml")


def test_a_folder_is_not_a_config(tmp_path):
    with pytest.raises(InputError, match="this is a folder; give the YAML file in it"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n", r"expected a mapping of keys such as 'task: pretrain', got \['a'\]"),
        (b"", "expected a mapping of keys such as 'task: pretrain', got None"),
        (b"task: pretrain\nmodel: [1\ndata: 2\n", "line 3: not readable as YAML"),
        (b"task: pretrain\nname: \t: x: y\n", "line 2: not readable as YAML"),
        (b"name: caf\xe9\n", "cannot be read as UTF-8 text"),
        (b"\xff\xfet\x00a", "cannot be read as UTF-8 text: 'utf-16"),
        (b"{[1]: 2}\n", "not readable as YAML: a key must be a word"),
        (b"task: !!python/object/apply:os.system [id]\n", "line 1: not readable as YAML"),
    ],
    ids=["list", "empty", "bracket", "tab", "latin-1", "utf-16", "key", "python"],
)
def test_an_unreadable_file_is_reported_with_the_line(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_config(path)
    assert "mine.yaml" in str(error.value)


# ---------------------------------------------------------------- tools/train.py --check

WITHOUT_PADDLE = """
import runpy, sys
sys.modules["paddle"] = None  # importing it is an ImportError
sys.argv = ["tools/train.py", *sys.argv[1:]]
runpy.run_path("tools/train.py", run_name="__main__")
"""


def test_check_prints_the_resolved_config_without_paddle(tmp_path):
    began = time.monotonic()
    words = ("-c", "configs/densecl/densecl_r50.yaml", "-o", "data.root=photos", "--check")
    code = [sys.executable, "-c", WITHOUT_PADDLE, *words]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20  # a second or so; importing Paddle alone takes several
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(done.stdout)
    assert load_config(resolved) == load_config(ROOT / "configs/densecl/densecl_r50.yaml", ["data.root=photos"])
