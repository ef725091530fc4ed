"""VisualDL: one record file, `vdl/*vdlrecords*` of the run folder, that a resumed run continues.

The viewer reads only the newest file of a folder. Each record in it is a length (8 bytes, little-endian) and a protobuf
message. The records are written here rather than by VisualDL's LogWriter, whose thread drops what the disk refuses and
leaves half a record, after which nothing can be read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from passl_densecl.disk import whole_file
from passl_densecl.reliability.logfile import LogFile
from passl_densecl.reliability.loggers.base import LoggedRun, Logger, tag_of


class VisualDL(Logger):
    package, install = "visualdl", "visualdl>=2.5.3"

    def __init__(self, run: LoggedRun) -> None:
        from visualdl.component import base_component

        self._make: Any = base_component
        folder = run.folder / "vdl"
        folder.mkdir(exist_ok=True)
        self._file = LogFile(self._continued(folder, run))
        self._file.settle()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = _now()
        records = [self._make.scalar(tag, value, step, now) for tag, value in values.items()]
        self._file.write(b"".join(map(_framed, records)))

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._file.write(_framed(self._make.image(tag, pixels, step, _now())))

    def close(self) -> None:
        self._file.close()
        if self._file.waiting:
            raise OSError(f"its last records could not be written: {self._file.problem}")

    def _continued(self, folder: Path, run: LoggedRun) -> Path:
        """The file to append to. It holds what the files of the folder say up to `run.step`, each point once.

        A version before this one began a file at each resume, with tags without groups. What was written again after
        a resume replaces what had been there. A file that need not change is not touched: a viewer may have it open.
        """
        files = sorted(folder.glob("*vdlrecords*"))
        found = [record for file in files for record in _records(file)] if run.step >= 0 else []
        kept = {}
        for record in found:
            value = record.values[0]
            value.tag = tag_of(value.tag)
            if value.id <= run.step and value.WhichOneof("one_value") not in ("meta_data", "hparam"):
                kept[value.tag, value.id] = record
        began = found[0].values[0].timestamp if found else _now()
        head = [self._make.meta_data(walltime=began)]
        settings = {key: str(value) if isinstance(value, bool) else value for key, value in run.settings.items()}
        head.append(self._make.hparam(run.config.name, settings, run.results, began))
        content = b"".join(map(_framed, [*head, *kept.values()]))
        if len(files) == 1 and files[0].read_bytes() == content:
            return files[0]
        numbers = [int(part) for file in files for part in file.name.split(".") if part.isdigit()]
        path = folder / f"vdlrecords.{max([int(time.time()), *(number + 1 for number in numbers)]):010d}.log"
        with whole_file(path) as opened:
            opened.write(content)
        for file in files:
            file.unlink()
        return path


def _records(path: Path) -> Iterator[Any]:
    """The records of a file, up to one that was being written when its run was killed."""
    from google.protobuf.message import DecodeError
    from visualdl.proto.record_pb2 import Record  # type: ignore[attr-defined]

    content, at = path.read_bytes(), 0
    while at + 8 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 8], "little")
        record = Record()
        try:
            record.ParseFromString(content[at + 8 : end])
        except DecodeError:
            return
        if end > len(content) or not record.values:
            return
        yield record
        at = end


def _framed(record: Any) -> bytes:
    content = record.SerializeToString()
    return len(content).to_bytes(8, "little") + content


def _now() -> int:
    return round(time.time() * 1000)
