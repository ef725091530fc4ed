"""Published DenseCL weights: what there is, from where, and how it gets into the cache, checked and converted.

The catalog is data, copied from the pages that it names. A figure stands there only where its page gives it for that
file, in the page's own digits. This project has measured none of them.

The cache is one folder: ``$PASSL_DENSECL_HOME``, else ``passl_densecl/weights`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.
A file in it may come from here or by hand; either way it is checked at every use against the SHA-256 that its name or its
source gives, and against ``FILE.sha256`` (in the format of sha256sum), which is written at the first use.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import passl_densecl
from passl_densecl.disk import parse_json, sha256_of, whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights.download import DownloadError, Limits, UnfitError, fetch, only_one, writing

__all__ = ["CATALOG", "Entry", "Figure", "cache_folder", "converted", "download", "entry", "list_models", "obtain"]

Convert = Callable[[Path, Path], None]  # (the file as published, the .pdparams to write)

_AUTHORS = "https://github.com/WXinlong/DenseCL/blob/b64bbb6e267f729d16ca558233b0ef3028857381/README.md"
_ADELAIDET = "https://github.com/aim-uofa/AdelaiDet/blob/master/configs/DenseCL/README.md"
_MMPRETRAIN = (
    "https://github.com/open-mmlab/mmpretrain/blob/ee7f2e88501f61aa95c742dd5f429f039935ee90/configs/densecl/README.md"
)
_PASSL = "https://github.com/PaddlePaddle/PASSL/blob/5c7359b15e37ffa8b994e394843a29f77814447c"
_PASSL_README, _PASSL_DOCS = f"{_PASSL}/README.md", f"{_PASSL}/docs/Train_DenseCL_model.md"
_HUGGING_FACE = "https://huggingface.co"
_OPENMMLAB = "https://download.openmmlab.com/mmselfsup/1.x/densecl/densecl_resnet50_8xb32-coslr-200e_in1k"


@dataclass(frozen=True)
class Figure:
    """A published number, in its source's digits."""

    what: str
    value: str
    source: str  # the page that gives it


@dataclass(frozen=True)
class Entry:
    """One published file."""

    name: str
    file: str  # its name in the cache
    kind: Literal["backbone", "pretraining", "classifier"]
    depth: int  # of the ResNet
    about: str
    source: str  # the page that offers it
    urls: tuple[str, ...]  # addresses of the file itself, best first
    page: str = ""  # where a browser gets it, when that is not the first address
    sha256: str = ""  # what is known of it beforehand: all 64 hex digits, its first ones, or nothing
    figures: tuple[Figure, ...] = ()


def _authors(file: str, depth: int, about: str, detection: str, segmentation: str, *more: Figure) -> Entry:
    """A row of the authors' table; its note says AP (COCO-style) and mIoU, averaged over 5 trials."""
    figures = (
        Figure("VOC detection AP", detection, _AUTHORS),
        Figure("VOC segmentation mIoU", segmentation, _AUTHORS),
        *more,
    )
    url = f"{_HUGGING_FACE}/xinlongwang/DenseCL/resolve/main/{file}.pth?download=true"
    return Entry(file, f"{file}.pth", "backbone", depth, about, _AUTHORS, (url,), figures=figures)


def _passl(name: str, kind: Literal["pretraining", "classifier"], about: str, drive: str, *figures: Figure) -> Entry:
    """A link in PASSL's pages: a share on Google Drive, whose file name and hash they do not tell. ``kind`` is what they say.

    ``urls`` holds Drive's address for the bytes of the shared file; for a large file it may show a page all the same,
    which is recognized.
    """
    return Entry(
        name,
        f"{name}.pdparams",
        kind,
        50,
        about,
        _PASSL_DOCS,
        (f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t",),
        page=f"https://drive.google.com/file/d/{drive}/view?usp=sharing",
        figures=figures,
    )


CATALOG: dict[str, Entry] = {
    model.name: model
    for model in (
        _authors("densecl_r50_coco_800ep", 50, "the authors' DenseCL, COCO, 800 epochs", "56.7", "67.5"),
        _authors("densecl_r50_coco_1600ep", 50, "the authors' DenseCL, COCO, 1600 epochs", "57.2", "68.0"),
        _authors(
            "densecl_r50_imagenet_200ep",
            50,
            "the authors' DenseCL, ImageNet, 200 epochs",
            "58.7",
            "69.4",
            Figure("COCO mask AP, SOLOv2", "35.7", _ADELAIDET),
            Figure("COCO box AP, FCOS", "40.9", _ADELAIDET),
        ),
        _authors("densecl_r101_imagenet_200ep", 101, "the authors' DenseCL, ImageNet, 200 epochs", "61.3", "74.1"),
        Entry(
            "densecl_resnet50_8xb32-coslr-200e_in1k",
            "densecl_resnet50_8xb32-coslr-200e_in1k_20220825-3078723b.pth",
            "pretraining",
            50,
            "mmpretrain's DenseCL, ImageNet, 200 epochs: the whole pre-training model",
            _MMPRETRAIN,
            (f"{_OPENMMLAB}/densecl_resnet50_8xb32-coslr-200e_in1k_20220825-3078723b.pth",),
            sha256="3078723b",
        ),
        Entry(
            "resnet50_densecl-pre_8xb32-linear-steplr-100e_in1k",
            "resnet50_linear-8xb32-steplr-100e_in1k_20220825-f0f0a579.pth",
            "classifier",
            50,
            "mmpretrain's linear classifier on that backbone, ImageNet, 100 epochs",
            _MMPRETRAIN,
            (
                f"{_OPENMMLAB}/resnet50_linear-8xb32-steplr-100e_in1k/"
                "resnet50_linear-8xb32-steplr-100e_in1k_20220825-f0f0a579.pth",
            ),
            sha256="f0f0a579",
            figures=(Figure("ImageNet linear top-1, %", "63.50", _MMPRETRAIN),),
        ),
        _passl(
            "passl_densecl_r50_200ep",
            "pretraining",
            "PASSL's DenseCL, ImageNet, 200 epochs",
            "1RWPO_g-fNJv8FsmCZ3LUbPTgPwtx-ybZ",
            # Two pages of PASSL, two numbers, one link.
            Figure("ImageNet linear top-1, %", "63.37", _PASSL_README),
            Figure("ImageNet linear top-1, %", "64.61", _PASSL_DOCS),
        ),
        _passl(
            "passl_densecl_r50_200ep_linear",
            "classifier",
            "PASSL's linear classifier, with its DenseCL backbone",
            "1XJeDY8clKfhUeXw4JcCa1QgG2G-Ibr4m",
        ),
    )
}


def list_models(pattern: str | None = None) -> list[str]:
    """Names of the published weights, sorted; with ``pattern`` those that match it (``*``, ``?``, ``[…]``)."""
    return sorted(name for name in CATALOG if pattern is None or fnmatch.fnmatchcase(name, pattern))


def entry(name: str) -> Entry:
    """What is known of one of them.

    Raises:
        InputError: there is none of that name; suggests one, or lists them.
    """
    if name in CATALOG:
        return CATALOG[name]
    close = difflib.get_close_matches(name, CATALOG, n=1)
    raise InputError(
        f"{name!r} is not among the published weights; "
        + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(list_models())}")
    )


def cache_folder() -> Path:
    """Where the files are, or will be. It need not exist.

    Raises:
        InputError: no variable names a folder, and the user has no home.
    """
    own = os.environ.get("PASSL_DENSECL_HOME", "")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(folder):
        raise InputError("there is no home folder to keep weights in; let PASSL_DENSECL_HOME name a folder")
    return Path(folder) / "passl_densecl" / "weights"


def download(name: str, *, progress: bool = True) -> Path:
    """The file of a published model, as published: from the cache, else downloaded into it, and checked.

    Several processes may ask at once: one on each host downloads, the others wait. Interrupted, the next call goes on
    where this one stopped. With ``PASSL_DENSECL_OFFLINE=1`` only the cache is asked.

    Args:
        name: one of :func:`list_models`.
        progress: show a bar on a terminal, lines elsewhere, on stderr.

    Raises:
        InputError: unknown name; the file in the cache is not the one; offline and not in the cache.
        DownloadError: no address gave it. The message says what to put where by hand.
    """
    return obtain(entry(name), progress=progress)


def converted(name: str, *, convert: Convert, progress: bool = True) -> Path:
    """The weights of a published model as a ``.pdparams`` beside the downloaded file, converted at the first use.

    Converted again when the downloaded file, the result or the version of this library is another one.

    Args:
        name: one of :func:`list_models`.
        convert: reads the first path (the file as published) and writes the second; called with no other process at it.
        progress: as in :func:`download`.

    Raises:
        InputError: as :func:`download`, or whatever ``convert`` finds wrong.
    """
    return convert_once(entry(name), obtain(entry(name), progress=progress), convert, progress=progress)


def obtain(model: Entry, *, progress: bool = True, limits: Limits | None = None) -> Path:
    """:func:`download` for any entry."""
    path = cache_folder() / model.file
    if not path.exists():
        if _offline():
            raise InputError(
                f"{model.name}: not in the cache, and PASSL_DENSECL_OFFLINE is set; {_by_hand(model, path)}"
            )
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(path, progress=progress):
            if not path.exists():  # another process may just have made it
                try:
                    fetch(
                        _addresses(model),
                        path,
                        check=lambda part: _check(model, part, path),
                        limits=limits,
                        progress=progress,
                    )
                except DownloadError as error:
                    raise DownloadError(f"{error}\nBy hand: {_by_hand(model, path)}") from None
    try:
        digest = _check(model, path, path)
    except UnfitError as error:
        raise InputError(f"{path}: {error}. Remove the file and ask again, or {_by_hand(model, path)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not _record(path).exists():
        with contextlib.suppress(InputError):  # a shared cache may be read-only
            _write(_record(path), f"{digest}  {path.name}\n")
    return path


def convert_once(model: Entry, source: Path, convert: Convert, *, progress: bool = True) -> Path:
    """``source`` turned into ``NAME.converted.pdparams`` beside it, unless that has been done."""
    target = source.with_name(f"{model.name}.converted.pdparams")
    stamp = target.with_suffix(".json")
    made_from = {"source": sha256_of(source), "version": passl_densecl.__version__}
    if _stamped(stamp, target) == made_from:
        return target
    with only_one(target, progress=progress):
        if _stamped(stamp, target) == made_from:
            return target
        # The name must end in .pdparams, which writers insist on, and must not look like a finished file.
        temporary = target.with_name(f".{model.name}.partial.pdparams")
        with writing(temporary):
            temporary.unlink(missing_ok=True)
        try:
            convert(source, temporary)
            with writing(target):
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                made = {**made_from, "result": sha256_of(temporary)}
                os.replace(temporary, target)
                _write(stamp, json.dumps(made, indent=1) + "\n")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return target


def _stamped(stamp: Path, target: Path) -> dict[str, str] | None:
    """What ``target`` was made from; None when it is not there, unfinished or not what was made."""
    try:
        made = parse_json(stamp.read_text(encoding="utf-8"))
        if made.pop("result") == sha256_of(target):
            return made
    except (InputError, OSError, ValueError, LookupError, AttributeError, TypeError):
        pass
    return None


# Checks


def _check(model: Entry, file: Path, path: Path) -> str:
    """The SHA-256 of ``file``, which is ``path`` or will be. UnfitError when it cannot be the one."""
    with open(file, "rb") as opened:
        head = opened.read(4)
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - 1))
        tail = opened.read(1)
    if not head:
        raise UnfitError("the file is empty")
    digest = sha256_of(file)
    if not digest.startswith(model.sha256):
        raise UnfitError(f"its SHA-256 is {digest}, expected {model.sha256}{'…' if len(model.sha256) < 64 else ''}")
    record = _record(path)
    if record.exists():
        recorded = record.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip()
        if recorded != digest:
            raise UnfitError(
                f"its SHA-256 is {digest}, but {recorded or 'nothing'} was recorded at the first use ({record}); "
                "if another file is meant to be there now, remove that record"
            )
    # Without a hash from the source a first use could record anything. Weights are a zip archive or a pickle.
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(file):
            raise UnfitError("the end of the file is missing")
    elif head[:1] != b"\x80":
        raise UnfitError(f"it is not a file of weights (it begins with {head!r})")
    elif path.suffix == ".pdparams" and tail != b".":
        raise UnfitError("the end of the file is missing")
    return digest


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


# Addresses


def _offline() -> bool:
    return os.environ.get("PASSL_DENSECL_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def _addresses(model: Entry) -> list[str]:
    """Where to get it; a mirror of Hugging Face comes first where ``HF_ENDPOINT`` names one, as in its own tools."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    mirrored = [url.replace(_HUGGING_FACE, mirror, 1) for url in model.urls if url.startswith(_HUGGING_FACE + "/")]
    return list(dict.fromkeys([*(mirrored if mirror else []), *model.urls]))


def _by_hand(model: Entry, path: Path) -> str:
    return f"get it from {model.page or _addresses(model)[0]} and save it as {path}"
