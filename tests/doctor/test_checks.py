"""densecl doctor on machines that lack something; no check may be worse than the trouble that it looks for."""

from __future__ import annotations

import getpass
import os
import platform
import sys
from pathlib import Path

import pytest

from passl_densecl.cli.main import main
from passl_densecl.distributed.driver import Driver, Gpu
from passl_densecl.doctor import checks, findings
from passl_densecl.doctor.findings import Finding, ask, each

GPU_BUILD = {"cuda": "11.8", "cudnn": "8.6.0", "nccl": "", "paddle": "2.6.2", "versioned": False, "conversion": ""}
A100 = Gpu("NVIDIA A100", 40 * 2**30, (8, 0))


@pytest.fixture
def gpu_machine(monkeypatch):
    monkeypatch.setattr(checks, "build", lambda: (GPU_BUILD, ""))
    monkeypatch.setattr(checks, "nvidia", lambda: Driver((12, 4), (A100, A100)))


def distribution(folder: Path, name: str, version: str) -> None:
    (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(text)


def named(found: object, name: str) -> Finding:
    return next(one for one in found if one.name == name)  # type: ignore[attr-defined]


def test_the_package_that_is_called_paddle(monkeypatch, tmp_path):
    distribution(tmp_path, "paddle", "1.4.4")
    monkeypatch.syspath_prepend(tmp_path)
    found = named(checks.packages(), "package paddle")
    assert found.status == "problem"
    assert "another project" in found.found
    assert "pip uninstall -y paddle" in found.remedy


def test_two_builds_of_paddle(monkeypatch, tmp_path):
    distribution(tmp_path, "paddlepaddle_gpu", "2.6.2")
    distribution(tmp_path, "paddlepaddle", "3.3.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert "paddlepaddle-gpu 2.6.2 overwrite each other" in named(checks.packages(), "paddle").found


def test_a_numpy_that_is_too_new(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "build", lambda: ({**GPU_BUILD, "conversion": "TypeError: only 0-dimensional"}, ""))
    distribution(tmp_path, "numpy", "2.4.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = named(checks.packages(), "numpy")
    assert (found.status, found.found.split(":")[0]) == ("problem", "2.4.0")
    assert "pip install 'numpy<2" in found.remedy


def test_a_paddle_that_cannot_be_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "build", checks.build.__wrapped__)
    (tmp_path / "paddle.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    found = named(checks.packages(), "paddle")
    assert found.status == "problem"
    assert found.found.endswith("ImportError: numpy.core.multiarray failed to import")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "it crashed (SIGABRT)"),
        ("import time; time.sleep(60)", "no answer for 1 s"),
        ("raise ValueError('what')", "ValueError: what"),
    ],
)
def test_a_process_that_fails_is_a_sentence(code, said):
    found, why = ask(code, 1 if "sleep" in code else 60)
    assert found is None
    assert said in why


@pytest.mark.usefixtures("gpu_machine")
def test_gpus_compute_or_say_why_not(monkeypatch):
    answers = [("", ""), (None, "it crashed (SIGSEGV): no message")]
    monkeypatch.setattr(checks, "ask", lambda *_, **environment: answers[int(environment["FLAGS_selected_gpus"])])
    first, second = checks.gpus()
    assert (first.status, second.status) == ("ok", "problem")
    assert "40 GiB, compute capability 8.0" in first.found
    assert "crashed (SIGSEGV)" in second.found


@pytest.mark.usefixtures("gpu_machine")
def test_libraries_are_looked_for_as_paddle_does(monkeypatch, tmp_path):
    some = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)
    for name in set(checks.LIBRARIES) - {"libnvrtc"}:
        (tmp_path / f"{name}.so").symlink_to(some)
    assert len(checks.cuda_libraries().figures["missing"]) == len(checks.LIBRARIES)
    monkeypatch.setenv("FLAGS_cuda_dir", str(tmp_path))
    found = checks.cuda_libraries()
    assert found.figures == {"missing": ["libnvrtc"]}
    assert "pip install nvidia-cuda-nvrtc-cu11\n" in found.remedy
    (tmp_path / "libnvrtc.so").symlink_to(some)
    assert checks.cuda_libraries().status == "ok"


@pytest.mark.usefixtures("gpu_machine")
def test_little_shared_memory(monkeypatch):
    small = os.statvfs_result((4096, 4096, 16384, 16384, 16384, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    found = checks.shared_memory()
    assert (found.status, found.found.split(";")[0]) == ("problem", "67.1 MB")
    monkeypatch.setattr(checks, "nvidia", Driver)
    assert checks.shared_memory().status == "warning"


def test_a_check_that_fails_is_a_finding():
    def memory() -> Finding:
        raise OSError(f"no {Path.home()}/secret of {getpass.getuser()} on {platform.node()}")

    (found,) = each([memory])
    assert (found.status, found.name) == ("problem", "memory")
    assert str(Path.home()) not in found.found


def test_nothing_private_is_on_the_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setattr(getpass, "getuser", lambda: "secret-user")
    text = f"{Path.home()}/x {sys.prefix}/lib {Path.cwd()}/y on secret-host of secret-user"
    assert findings.without_private(text) == "~/x PYTHON/lib ./y on HOST of USER"


def test_a_file_that_cannot_be_written_does_not_cost_the_answer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        checks, "inspect", lambda: iter([Finding("ok", "one", "fine"), Finding("problem", "two", "bad")])
    )
    assert main(["doctor", "--json", str(tmp_path / "missing" / "doctor.json")]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:3]] == ["ok", "problem"]
    assert printed[3].startswith("1 problem, 0 warnings; ")
    assert printed[3].endswith("doctor.json cannot be written: No such file or directory")
