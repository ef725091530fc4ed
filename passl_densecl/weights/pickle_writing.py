"""Pickles written so that everybody can read them.

The identity card of a pickle is a text that its first three instructions push and drop again: every reader of pickles
passes over it, as over a comment.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import as_array, not_plain


def dump_pickle(file: BinaryIO, content: object, *, card: cards.Card | Mapping[str, Any] | None = None) -> None:
    """What :func:`~passl_densecl.weights.writing.write_pickle` puts into a file."""
    if card is not None:
        text = cards.encode(card)
        file.write(cards.PICKLE_START + struct.pack("<Q", len(text)) + text + pickle.POP)
    _PortablePickler(file).dump(content)


class _PortablePickler(pickle.Pickler):
    """Writes an array as ``numpy.ndarray(shape, dtype, bytes)``, names that every numpy knows."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=4)
        # Without a memo, the bytes of an array are freed as soon as they are written, and the file does not depend on
        # which equal strings happen to be one object.
        self.fast = True

    def reducer_override(self, value: Any) -> Any:
        array = as_array(value)
        if array is not None:
            return np.ndarray, (array.shape, array.dtype.str, array.tobytes())
        if type(value) is OrderedDict or value is OrderedDict or value is np.ndarray:
            return NotImplemented
        raise not_plain(value)
