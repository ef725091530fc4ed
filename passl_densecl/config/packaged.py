"""The packaged configs, found by name: those of the repository's configs/, in a clone and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from passl_densecl.errors import InputError, printable
from passl_densecl.text import listed, suggestion

_PACKAGE = Path(__file__).resolve().parents[1]
TOOLBOX_CONFIGS = "downstream"  # configs of other programs


def config_folder() -> Path:
    """The folder of the packaged configs."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def packaged_configs() -> dict[str, Path]:
    """Every packaged experiment by its name, such as 'small/densecl_r18'."""
    folder = config_folder()
    paths = sorted(folder.rglob("*.yaml"))
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if not name.startswith(TOOLBOX_CONFIGS + "/")}


def find_config(name: str | Path) -> Path:
    """The file that is meant: an existing path, or else the packaged config of that name, in full or its last part.

    Raises:
        InputError: nothing has this name, or several packaged configs do.
    """
    path = Path(name)
    if path.is_file():
        return path
    configs = packaged_configs()
    wanted = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    found = [key for key in configs if key == wanted] or [key for key in configs if key.split("/")[-1] == wanted]
    if len(found) == 1:
        return configs[found[0]]
    shown = printable(str(name))
    if found:
        raise InputError(f"config {shown!r}: several have this name: {listed(found, 9)}; give one in full")
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f"the config of this run is {inside}" if inside.is_file() else "give the YAML file in it"
        raise InputError(f"config {shown!r}: this is a folder; {hint}")
    stems = [key.split("/")[-1] for key in configs]
    if len(path.parts) > 1 and path.suffix and not path.parent.is_dir():
        raise InputError(f"config {shown!r}: no such file, and no folder {printable(str(path.parent))!r}")
    siblings = [entry.name for pattern in ("*.yaml", "*.yml") for entry in path.parent.glob(pattern)]
    hint = suggestion(path.name, siblings) or suggestion(wanted, [*configs, *stems])
    raise InputError(
        f"config {shown!r}: no such file, and no packaged config of this name{hint} ('config ls' lists them)"
    )
