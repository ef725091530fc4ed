"""The verbs from Python: `pretrain` is `densecl train`, and the run that it returns leads on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passl_densecl.cli import train
from passl_densecl.cli.command import check_outputs
from passl_densecl.cli.main import verb_of
from passl_densecl.config import Config, PretrainConfig, load_config, path_text
from passl_densecl.errors import InputError, RunError

if TYPE_CHECKING:
    from passl_densecl.models import DenseCL, ResNetBackbone


@dataclass(frozen=True)
class TrainedRun:
    """A run of pre-training: finished, or stopped by a signal (`exit_code` 130 or 143) and to be resumed."""

    path: Path  # its folder
    config: PretrainConfig
    exit_code: int

    def model(self) -> DenseCL:
        """Both encoders, projection heads and queues of the newest checkpoint, in eval mode."""
        from passl_densecl.api.models import get_model

        return get_model(self.path)  # type: ignore[return-value]

    def backbone(self) -> ResNetBackbone:
        """The query encoder's backbone of the newest checkpoint, in eval mode: (B, 3, height, width) → the last map."""
        return self.model().query_encoder.backbone

    def evaluate(self, verb: str, **options: Any) -> dict[str, Any]:
        """The figures of `densecl eval VERB`, its options as keywords: evaluate("knn", train="a", val="b", k=[20]).

        Raises:
            InputError: unknown verb or wrong values.
        """
        words = [str(self.path)]
        for name, value in options.items():
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif value not in (None, False):
                words += [option, *map(str, value if isinstance(value, (list, tuple)) else [value])]
        found = verb_of(f"eval {verb}")
        parser = found.parser(f"evaluate({verb!r})")
        parser.raises = True
        args = parser.read(words)
        check_outputs(args, found.outputs)
        return found.run(args)


def pretrain(
    config: str | os.PathLike[str] | Config,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    devices: str | None = None,
    resume: bool | str | os.PathLike[str] = False,
    load: str | os.PathLike[str] | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    accept_changes: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Pre-train as `densecl train CONFIG DATA` does.

    Args:
        config: a YAML file, the name of a packaged config, or what `load_config` returned.
        data: the folder of images, or a pack of them; None: as the config says.
        out: the run's folder; None: output_dir/name of the config.
        devices: "0,1,2,3", "all", "cpu" or "cpu:2": processes of their own where there are several. None: the config's
            device, in this process.
        resume: True continues the newest checkpoint, a path that one.
        load, pretrained: what a new run starts from: a whole training state, or a backbone (the one behind `prefix`,
            where the file holds several).
        overwrite: replace a run in the folder.
        accept_changes: continue with another recipe than the checkpoint records.
        settings: keys of the config, "__" for a dot: ``epochs=50, model__queue_len="auto"``.

    Raises:
        InputError: invalid input, named with what to do.
        RunError: the run cannot continue; what is saved stays.
    """
    overrides = [] if data is None else [f"data.root={path_text(os.fspath(data))}"]
    if out is not None:
        folder = Path(out)
        overrides += [f"output_dir={path_text(str(folder.parent))}", f"name={folder.name}"]
    overrides += [f"{key.replace('__', '.')}={_as_text(value)}" for key, value in settings.items()]
    if isinstance(config, (str, os.PathLike)):
        checked = load_config(os.fspath(config), overrides)
    elif overrides:
        raise InputError(f"give the config's file or name to change it ({', '.join(overrides)}), not a loaded config")
    else:
        checked = config
    if not isinstance(checked, PretrainConfig):
        raise InputError(f"config {checked.name!r} has task: {checked.task}; pretrain takes task: pretrain")
    start = {
        "load": load,
        "prefix": prefix,
        "pretrained": pretrained,
        "resume": "auto" if resume is True else resume or None,
    }
    given: dict[str, Any] = {name: None if value is None else os.fspath(value) for name, value in start.items()}
    if devices is None:
        from passl_densecl.engine.pretrain import pretrain as run_here

        code = run_here(checked, **given, overwrite=overwrite, accept_changes=accept_changes)
    else:
        if not isinstance(config, (str, os.PathLike)):
            raise InputError("devices: several processes read the config themselves; give its file or name")
        words = ["-c", os.fspath(config), "--devices", devices, *(word for one in overrides for word in ("-o", one))]
        words += [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        flags = {"--overwrite": overwrite, "--accept-changes": accept_changes}
        words += [flag for flag, wanted in flags.items() if wanted]
        code = train.run(train.main.parser().read(words))
    if code not in (0, 130, 143):
        raise RunError(f"training ended with exit code {code}; its messages are above, its logs in {checked.run_dir}")
    return TrainedRun(checked.run_dir, checked, code)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else os.fspath(value) if isinstance(value, Path) else json.dumps(value)
