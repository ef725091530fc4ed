"""Weights by name instead of by path: ``hf:OWNER/NAME``, a repository of the Hugging Face Hub, or one of the model zoo.

``huggingface_hub`` finds, downloads and caches; its own variables hold: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError, option
from passl_densecl.text import first_line, listed
from passl_densecl.weights import zoo
from passl_densecl.weights.download import DownloadError

PREFIX = "hf:"
WEIGHTS = "model.safetensors"
_DEFAULT_FILES = (WEIGHTS, "model.pdparams")
_KNOWN = (".safetensors", ".pdparams", ".pd", ".pth", ".pt", ".pkl", ".bin")
_FORM = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")


def named_file(name: str) -> Path | None:
    """The file of weights that a name means, downloaded at its first use; None for what is no such name.

    Raises InputError: no such repository, revision or file, or it can neither be downloaded nor found in the cache.
    """
    if name.startswith(PREFIX):
        return _hub_file(name)
    return zoo.download(name) if name in zoo.CATALOG else None


def download(name: str, output: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Path:
    """The file of the weights ``name`` as published, in the cache; with ``output``, a copy of it there.

    Args:
        name: a name of the model zoo, or ``hf:OWNER/NAME[/FILE][@REVISION]``. Without FILE: model.safetensors, else
            model.pdparams. REVISION is a branch, tag or commit; main without it.
        output: a file with the suffix of the published one, or an existing folder.
        overwrite: replace a file that is there.

    Raises:
        InputError: unknown name; the file is there, or has another suffix; or as :func:`named_file`.
    """
    target = None if output is None else Path(output)
    if target is not None and target.is_file() and not overwrite:
        raise InputError(f"{target} exists; give another name, or {option('overwrite')}")
    file = named_file(name) or zoo.download(name)  # which names what there is
    if target is None:
        return file
    if target.is_dir():
        return download(name, target / file.name, overwrite=overwrite)
    if target.suffix != file.suffix:
        raise InputError(f"{target}: {name} is a {file.suffix} file; give that suffix, and convert it afterwards")
    with whole_file(target) as copy, open(file, "rb") as source:
        shutil.copyfileobj(source, copy, 2**20)
    return target


def hub_library(purpose: str) -> ModuleType:
    """huggingface_hub. Raises InputError when it is not installed; `purpose` says what needs it."""
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{purpose} needs huggingface_hub: pip install 'huggingface_hub>=1.10,<3'") from None
    return huggingface_hub


@functools.cache  # one commit for all that a process reads of a name
def _hub_file(name: str) -> Path:
    form = _FORM.fullmatch(name.removeprefix(PREFIX))
    if form is None:
        raise InputError(f"{name!r}: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE")
    repository, file, revision = form["repository"], form["file"], form["revision"]
    hub = hub_library(name)
    from huggingface_hub import errors

    offline = zoo.is_offline() or hub.is_offline_mode()
    unreachable: str | None = None  # why: then the cache may still have one of the files
    for each in (file,) if file else _DEFAULT_FILES:
        try:
            cached = offline or unreachable is not None
            return Path(hub.hf_hub_download(repository, each, revision=revision, local_files_only=cached))
        except errors.HFValidationError as error:
            raise InputError(f"{name!r}: expected hf:OWNER/NAME[@REVISION] ({error})") from None
        except errors.GatedRepoError:
            raise InputError(f"{name}: its owner grants access on request: {_ask(hub, repository)}") from None
        except errors.RepositoryNotFoundError:
            raise InputError(
                f"{name}: there is no repository {repository}, or it is private: {_ask(hub, repository)}"
            ) from None
        except errors.RevisionNotFoundError:
            raise InputError(f"{name}: {repository} has no branch, tag or commit {revision!r}") from None
        except errors.LocalEntryNotFoundError as error:
            unreachable = unreachable or first_line(error.__cause__ or error)
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, OSError) as error:
            raise DownloadError(f"{name} could not be downloaded: {first_line(error)}") from None
    wanted = file or " or ".join(_DEFAULT_FILES)
    where = f"{name}: {revision or 'main'} of {repository} has no {wanted}"
    if offline:
        raise InputError(f"{where} in the cache ({hub.constants.HF_HUB_CACHE}), and this is offline")
    if unreachable is not None:
        raise DownloadError(f"{name} could not be downloaded, and the cache has no {wanted}: {unreachable}")
    others = [each for each in hub.list_repo_files(repository, revision=revision) if each.endswith(_KNOWN)]
    there = f"name one that it has: hf:{repository}/FILE with {listed(others, 5)}" if others else "nor other weights"
    raise InputError(f"{where}; {there}")


def _ask(hub: ModuleType, repository: str) -> str:
    if hub.get_token() is None:
        return "run `hf auth login`, or set HF_TOKEN, to be recognized"
    return f"the account of your token may not read {repository}"
