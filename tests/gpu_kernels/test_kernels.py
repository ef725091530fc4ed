"""How the check without a GPU reads Paddle's log and registry; the check itself is `make test-gpu-kernels`."""

from __future__ import annotations

import paddle
import pytest

from tests.gpu_kernels.kernels import problem, registered_forms, used_kernels

# Paddle 2.6.2 and 3.3.1, two threads whose operators overlap, then the older interface.
LOG = """\
I1128 13:41:40.329948  9663 api.cc:83010] add_ API kernel key: [CPU, NCHW, float32]
I1128 13:41:40.329950  9664 backward_api.cc:15026] sum_grad API kernel key: [CPU, Undefined(AnyLayout), bfloat16]
I1128 13:41:40.330019  9663 api.cc:83017] add kernel: {"input":[],"output":["CPU, NCHW, float32"],"attribute":[]}
I1128 13:41:40.330020  9664 backward_api_base.cc:83] sum_grad kernel: {"input":[
passl_densecl 0.2.0 · paddle 2.6.2 · 1 × cpu
I1128 14:27:07.794027  2676 prepared_operator.cc:291] Dynamic mode PrepareImpl - kernel name: check_finite_and_unscale \
| kernel key: (CPU, Undefined(AnyLayout), float32) | kernel: {"input":["CPU, NCHW, float32","CPU, NCHW, float32"]
"""
FORM = "{{data_type[{}]; data_layout[Undefined(AnyLayout)]; place[Place({})]; library_type[PLAIN]}}"
REGISTRY = {  # of a build for GPUs, which this one need not be
    "elementwise_add": [FORM.format("float", "gpu:0"), FORM.format("::paddle::platform::bfloat16", "gpu:0")],
    "eig": [FORM.format("float", "cpu")],
}


def test_each_thread_says_the_dtype_of_its_kernel():
    used = [("add", "float32"), ("sum_grad", "bfloat16"), ("check_finite_and_unscale", "float32")]
    assert list(used_kernels(LOG.splitlines())) == used


@pytest.mark.parametrize(
    ("name", "dtypes", "expected"),
    [
        ("add", {"float32", "bfloat16", "any"}, ""),
        ("add", {"float32", "int64", "float16"}, "NOT FOR float16, int64"),
        ("eig", {"float32"}, "NONE"),
        ("elementwise_add", {"float32"}, "UNKNOWN"),
    ],
)
def test_what_lacks_a_form_is_named(name, dtypes, expected):
    forms = registered_forms(REGISTRY, paddle.base.core._get_phi_kernel_name, "gpu")
    assert problem(name, dtypes, forms) == expected


def test_this_build_has_what_it_runs():
    core = paddle.base.core
    forms = registered_forms(core._get_all_register_op_kernels("phi"), core._get_phi_kernel_name, "cpu")
    assert [name for name in ("add", "sum", "mean", "cast") if problem(name, {"float32", "int32"}, forms)] == []
    assert problem("add", {"float8"}, forms) == "NOT FOR float8"
