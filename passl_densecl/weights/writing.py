"""Weight files written in the format that their suffix says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.pickle_writing import dump_pickle

_PICKLES = (".pdparams", ".pdopt", ".pd", ".pkl")
_TORCH = (".pth", ".pt")
_SAFETENSORS = (".safetensors",)
SUFFIXES = (*_PICKLES, *_TORCH, *_SAFETENSORS)


def write_weights(
    path: str | os.PathLike[str], content: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain data in the format that the suffix of ``path`` says, all or nothing.

    ``.pdparams``, ``.pd``, ``.pdopt`` and ``.pkl`` are pickles, ``.pth`` and ``.pt`` torch zip files; ``.safetensors``
    holds flat tables of arrays only. Paddle's tensors are written as arrays. Equal content and card give equal bytes.

    Raises:
        InputError: another suffix, content that the format cannot hold, or the file cannot be written there.
        TypeError: ``content`` holds something that is not plain data.
    """
    suffix = Path(path).suffix
    if suffix in _PICKLES:
        write_pickle(path, content, card=card)
    elif suffix in _TORCH:
        from passl_densecl.weights.torch_writing import write_torch

        write_torch(path, content, card=card)
    elif suffix in _SAFETENSORS:
        from passl_densecl.weights.safetensors_files import write_safetensors

        write_safetensors(path, content, card=card)
    else:
        raise InputError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}, which says the format")


def write_pickle(
    path: str | os.PathLike[str], content: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain containers, numbers, text, numpy arrays and Paddle tensors (as arrays) to ``path``, all or nothing.

    :func:`~passl_densecl.weights.files.read_weights` reads it, and so do ``paddle.load`` and ``pickle.load`` under
    numpy 1.23 to 2.x; these do not see the ``card``. Equal content and card give equal bytes. One array at a time is
    copied.

    Raises:
        InputError: the folder is missing or the file cannot be written there.
        TypeError: ``content`` holds something that is not plain data.
    """
    with whole_file(path) as file:
        dump_pickle(file, content, card=card)
