"""Which kernels a run used, by Paddle's own log (`GLOG_v=6`), and whether each has a form for a device."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

Kernel = tuple[str, str]
"""(name in Paddle's registry, dtype as numpy spells it)."""

ANY = "any"  # the dtype in the key of an operator that nothing gives one

# An eager operator says its key, then the kernel that it takes: `add_` takes `add`.
_KEY = re.compile(r"^I\d+ \S+ +(\d+) .*\] \w+ API kernel key: \[\w+, .*, ([\w:<>]+)\]")
_TAKEN = re.compile(r"^I\d+ \S+ +(\d+) .*\] (\w+) kernel: \{")
# One of the older interface, which loss scaling uses, says both at once.
_BOTH = re.compile(r"kernel name: (\w+) \| kernel key: \(\w+, .*?, ([\w:<>]+)\)")
_FORM = re.compile(r"data_type\[([^\]]+)\].*place\[Place\((\w+)")
_DTYPES = {"float": "float32", "double": "float64", "int": "int32", "undefined": ANY}


def used_kernels(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels that a log of Paddle names, in its order and as often as they ran."""
    dtypes: dict[str, str] = {}  # by thread, of the operator that is about to take its kernel
    for line in lines:
        if found := _KEY.search(line):
            dtypes[found[1]] = found[2]
        elif found := _TAKEN.search(line):
            yield found[2], dtype_name(dtypes.get(found[1], ANY))
        elif found := _BOTH.search(line):
            yield found[1], dtype_name(found[2])


def registered_forms(
    registry: Mapping[str, Iterable[str]], kernel_name: Callable[[str], str], device: str
) -> dict[str, set[str]]:
    """Kernel → the dtypes for which it is there on `device` ("gpu", "cpu"); none for a kernel of other devices only.

    `registry` is what `paddle.base.core._get_all_register_op_kernels("phi")` returns. It calls kernels by the names of
    the older operators; `kernel_name` (`paddle.base.core._get_phi_kernel_name`) gives the kernel's own:
    elementwise_add is add, reduce_sum is sum, transfer_dtype is cast.
    """
    forms: dict[str, set[str]] = {}
    for operator, keys in registry.items():
        found = [_FORM.search(key) for key in keys]
        here = {dtype_name(form[1]) for form in found if form and form[2] == device}
        forms.setdefault(kernel_name(operator), set()).update(here)
    return forms


def dtype_name(text: str) -> str:
    """'::phi::dtype::bfloat16' → 'bfloat16', 'int64_t' → 'int64', 'Undefined' → 'any'."""
    word = text.rsplit("::", 1)[-1].removesuffix("_t").lower()
    return _DTYPES.get(word, word)


def problem(name: str, dtypes: Collection[str], forms: Mapping[str, Collection[str]]) -> str:
    """What keeps an operator from running on the device as it ran here; "" when nothing does."""
    if name not in forms:
        return "UNKNOWN"
    if not forms[name]:
        return "NONE"
    lacking = sorted(set(dtypes) - set(forms[name]) - {ANY})
    return f"NOT FOR {', '.join(lacking)}" if lacking else ""
