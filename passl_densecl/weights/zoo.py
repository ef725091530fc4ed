"""Published DenseCL weights: what there is, from where, and how it gets into the cache, checked.

The catalog is data, copied from the pages that it names. A figure stands there only where its page gives it for that
file, in the page's own digits. This project has measured none of them.

The cache is one folder: ``$PASSL_DENSECL_HOME``, else ``passl_densecl/weights`` below ``$XDG_CACHE_HOME`` or
``~/.cache``. A file in it may be downloaded or placed by hand; either way it is checked at every use against the
SHA-256 that its source gives, and against ``FILE.sha256`` (in the format of sha256sum), written at the first use.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from passl_densecl.disk import sha256_of, whole_file
from passl_densecl.errors import InputError
from passl_densecl.text import suggestion
from passl_densecl.weights.download import DownloadError, UnfitError, fetch, only_one, writing

Kind = Literal["backbone", "pretraining", "classifier"]

_AUTHORS = "https://github.com/WXinlong/DenseCL/blob/b64bbb6e267f729d16ca558233b0ef3028857381/README.md"
_ADELAIDET = "https://github.com/aim-uofa/AdelaiDet/blob/master/configs/DenseCL/README.md"
_COMMIT = "ee7f2e88501f61aa95c742dd5f429f039935ee90"
_MMPRETRAIN = f"https://github.com/open-mmlab/mmpretrain/blob/{_COMMIT}/configs/densecl/README.md"
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
    kind: Kind
    depth: int  # of the ResNet
    about: str
    source: str  # the page that offers it
    urls: tuple[str, ...]  # addresses of the file itself, best first
    page: str = ""  # where a browser gets it, when that is not the first address
    sha256: str = ""  # what is known of it beforehand: all 64 hex digits, its first ones, or nothing
    figures: tuple[Figure, ...] = ()


def _authors(name: str, data: str, detection: str, segmentation: str, *more: Figure, depth: int = 50) -> Entry:
    """A row of the authors' table; its note says AP (COCO-style) and mIoU, averaged over 5 trials."""
    voc = (Figure("VOC detection AP", detection, _AUTHORS), Figure("VOC segmentation mIoU", segmentation, _AUTHORS))
    about = f"the authors' DenseCL, {data}"
    url = f"{_HUGGING_FACE}/xinlongwang/DenseCL/resolve/main/{name}.pth?download=true"
    return Entry(name, f"{name}.pth", "backbone", depth, about, _AUTHORS, (url,), figures=(*voc, *more))


def _mmpretrain(name: str, kind: Kind, about: str, path: str, *figures: Figure) -> Entry:
    """A file below mmpretrain's folder. Its name ends in the first 8 hex digits of its SHA-256."""
    folder, _, file = path.rpartition("/")
    url = f"{_OPENMMLAB}{folder}/{file}"
    return Entry(name, file, kind, 50, about, _MMPRETRAIN, (url,), sha256=file[-12:-4], figures=figures)


def _passl(name: str, kind: Kind, about: str, drive: str, *figures: Figure) -> Entry:
    """A link in PASSL's pages to Google Drive, which names neither the file nor its hash. ``kind`` is what they say.

    ``urls`` holds Drive's address for the content of the shared file. For a large file, Drive may answer with a web
    page instead, which is recognized.
    """
    url = f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t"
    page = f"https://drive.google.com/file/d/{drive}/view?usp=sharing"
    return Entry(name, f"{name}.pdparams", kind, 50, about, _PASSL_DOCS, (url,), page=page, figures=figures)


_COCO_FIGURES = Figure("COCO mask AP, SOLOv2", "35.7", _ADELAIDET), Figure("COCO box AP, FCOS", "40.9", _ADELAIDET)
_TOP1 = "ImageNet linear top-1, %"
_ENTRIES = (
    _authors("densecl_r50_coco_800ep", "COCO, 800 epochs", "56.7", "67.5"),
    _authors("densecl_r50_coco_1600ep", "COCO, 1600 epochs", "57.2", "68.0"),
    _authors("densecl_r50_imagenet_200ep", "ImageNet, 200 epochs", "58.7", "69.4", *_COCO_FIGURES),
    _authors("densecl_r101_imagenet_200ep", "ImageNet, 200 epochs", "61.3", "74.1", depth=101),
    _mmpretrain(
        "densecl_resnet50_8xb32-coslr-200e_in1k",
        "pretraining",
        "mmpretrain's DenseCL, ImageNet, 200 epochs: the whole pre-training model",
        "/densecl_resnet50_8xb32-coslr-200e_in1k_20220825-3078723b.pth",
    ),
    _mmpretrain(
        "resnet50_densecl-pre_8xb32-linear-steplr-100e_in1k",
        "classifier",
        "mmpretrain's linear classifier on that backbone, ImageNet, 100 epochs",
        "/resnet50_linear-8xb32-steplr-100e_in1k/resnet50_linear-8xb32-steplr-100e_in1k_20220825-f0f0a579.pth",
        Figure(_TOP1, "63.50", _MMPRETRAIN),
    ),
    _passl(
        "passl_densecl_r50_200ep",
        "pretraining",
        "PASSL's DenseCL, ImageNet, 200 epochs",
        "1RWPO_g-fNJv8FsmCZ3LUbPTgPwtx-ybZ",
        Figure(_TOP1, "63.37", _PASSL_README),  # two pages of PASSL, two numbers, one link
        Figure(_TOP1, "64.61", _PASSL_DOCS),
    ),
    _passl(
        "passl_densecl_r50_200ep_linear",
        "classifier",
        "PASSL's linear classifier, with its DenseCL backbone",
        "1XJeDY8clKfhUeXw4JcCa1QgG2G-Ibr4m",
    ),
)
CATALOG: dict[str, Entry] = {model.name: model for model in _ENTRIES}


def list_models(pattern: str | None = None) -> list[str]:
    """Names of the published weights, sorted; with ``pattern``, those that match it (``*``, ``?``, ``[…]``)."""
    return sorted(name for name in CATALOG if pattern is None or fnmatch.fnmatchcase(name, pattern))


def entry(name: str) -> Entry:
    """The catalog's entry for a name. Raises InputError if there is none; it suggests one, or lists them."""
    if name in CATALOG:
        return CATALOG[name]
    known = suggestion(name, CATALOG) or f"; there are {', '.join(list_models())}"
    raise InputError(f"{name!r} is not among the published weights{known}")


def cache_folder() -> Path:
    """The folder of the downloaded files, which may not exist yet. Raises InputError if the user has no home folder."""
    own = os.environ.get("PASSL_DENSECL_HOME", "")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(folder):
        raise InputError("there is no home folder to keep weights in; set PASSL_DENSECL_HOME to a folder")
    return Path(folder) / "passl_densecl" / "weights"


def is_offline() -> bool:
    """Whether PASSL_DENSECL_OFFLINE is set: nothing is downloaded."""
    return os.environ.get("PASSL_DENSECL_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def download(name: str, *, progress: bool = True) -> Path:
    """The file of a published model, as published: from the cache, else downloaded into it; checked either way.

    Several processes may call this at once: one on each host downloads, the others wait. After an interruption, the
    next call continues. With ``PASSL_DENSECL_OFFLINE=1`` only the cache is used.

    Args:
        name: one of :func:`list_models`.
        progress: show a bar on a terminal, lines elsewhere, on stderr.

    Raises:
        InputError: unknown name; the file in the cache is the wrong one; offline and not in the cache.
        DownloadError: no address provided it. The message says which file to save where by hand.
    """
    model = entry(name)
    path = cache_folder() / model.file
    by_hand = f"get it from {model.page or _addresses(model)[0]} and save it as {path}"
    if not path.exists():
        if is_offline():
            raise InputError(f"{name}: not in the cache, and PASSL_DENSECL_OFFLINE is set; {by_hand}")
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(path, progress=progress):
            if not path.exists():  # another process may have made it meanwhile
                try:
                    fetch(_addresses(model), path, check=lambda part: _check(model, part, path), progress=progress)
                except DownloadError as error:
                    raise DownloadError(f"{error}\nBy hand: {by_hand}") from None
    try:
        digest = _check(model, path, path)
    except UnfitError as error:
        raise InputError(f"{path}: {error}. Remove the file and try again, or {by_hand}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not _record(path).exists():
        with contextlib.suppress(InputError), whole_file(_record(path)) as file:  # a shared cache may be read-only
            file.write(f"{digest}  {path.name}\n".encode())
    return path


def _check(model: Entry, file: Path, path: Path) -> str:
    """The SHA-256 of ``file``, which is ``path`` or will be. Raises UnfitError if it cannot be the right file."""
    with open(file, "rb") as opened:
        head = opened.read(4)
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - 1))
        tail = opened.read(1)
    if not head:
        raise UnfitError("the file is empty")
    if head.lstrip().startswith(b"<"):
        raise UnfitError("it is a web page, not the file")
    digest = sha256_of(file)
    if not digest.startswith(model.sha256):
        raise UnfitError(f"its SHA-256 is {digest}, expected {model.sha256}{'…' if len(model.sha256) < 64 else ''}")
    record = _record(path)
    if record.exists():
        recorded = record.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip()
        if recorded != digest:
            raise UnfitError(
                f"its SHA-256 is {digest}, but {recorded or 'nothing'} was recorded at the first use ({record}); "
                "if the file was replaced on purpose, remove that record"
            )
    # Without a published hash, any file could be recorded at the first use. Weights are a zip archive or a pickle.
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


def _addresses(model: Entry) -> list[str]:
    """Where to get it; a mirror of Hugging Face comes first if ``HF_ENDPOINT`` names one, as in its own tools."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    mirrored = [url.replace(_HUGGING_FACE, mirror, 1) for url in model.urls if url.startswith(_HUGGING_FACE + "/")]
    return list(dict.fromkeys([*(mirrored if mirror else []), *model.urls]))
