"""Images that cannot be decoded: others replace them; they are counted and listed, and too many stop the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from passl_densecl.data.datasets import ImageSet
from passl_densecl.disk import whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.errors import RunError
from passl_densecl.reliability.log import SilentLog
from passl_densecl.text import one_line, plural

FILE = "bad_images.txt"
ALWAYS_ALLOWED = 10  # per epoch; so few stop no run (unless max_bad_share is 0): one of five is not a bad disk
NAMED = 10  # in the log; the file has them all


class BadImages:
    """Undecodable images of one run, over all its processes: this epoch's number, and a list of all since its start.

    The list is RUN/bad_images.txt: on each line a path, a tab and the reason; sorted, every image once. In a path, line
    ends, other control characters, bytes that are not UTF-8 and the backslash are escaped (`\\n`, `\\xe9`, `\\\\`). It
    is written at the end of an epoch and before every checkpoint, so that it is never behind one: a resumed run reads
    it.
    """

    def __init__(
        self, run_dir: Path, images: ImageSet, max_share: float, log: SilentLog, *, resumed: bool, in_epoch: int = 0
    ) -> None:
        """`in_epoch`: of a resumed run, how many the epoch had until its checkpoint."""
        self.file = run_dir / FILE
        self.in_epoch = in_epoch
        self._images, self._max_share, self._log = images, max_share, log
        self._found: list[tuple[str, str]] = []  # by this process, since the last `collect`
        self._known: dict[str, str] = {}  # path → why, in the main process
        self._named, self._written = 0, True
        if dist.is_main():
            if resumed:
                self._known = read_list(self.file)
            else:
                self.file.unlink(missing_ok=True)  # of a run that ended before its first checkpoint

    def add(self, bad: Mapping[int, str], images: ImageSet | None = None) -> None:
        """Add those of one batch of this process, index → reason; `images` are the training images unless given."""
        images = images or self._images
        self._found += [(one_line(images.path(index)), " ".join(why.split())) for index, why in bad.items()]

    def collect(self, epoch: int, images_per_epoch: int, *, ends: bool, write: bool = False) -> None:
        """Count and log what all processes have found since the last call; all call it at the same step.

        Args:
            epoch: the present one, from 1, and how many images it has over all processes.
            ends: this was its last step: the list is written and the next one counts from 0.
            write: write the list now, because a checkpoint follows.

        Raises:
            RunError: those of this epoch are more than the allowed share of its images.
        """
        self.in_epoch += self._gather()
        too_many = self.in_epoch > allowed(self._max_share, images_per_epoch)
        if ends or write or too_many:
            self._write()
        if too_many:
            raise self._too_many(f"epoch {epoch}: ", self.in_epoch, images_per_epoch, self._images)
        if ends and self.in_epoch:
            share = f"{self.in_epoch:,} of {images_per_epoch:,} images could not be decoded"
            self._log.line(
                "bad",
                f"epoch {epoch}  {share} ({self.in_epoch / images_per_epoch:.2%}); {len(self._known):,} different ones "
                f"so far, in {self.file}",
            )
        if ends:
            self.in_epoch = 0

    def judge(self, images: ImageSet) -> int:
        """How many were bad in one pass of all processes over other `images`. The list is written.

        Raises:
            RunError: more than the allowed share of them.
        """
        count = self._gather()
        self._write()
        if count > allowed(self._max_share, len(images)):
            raise self._too_many("", count, len(images), images)
        return count

    def _gather(self) -> int:
        found, self._found = dist.gather_objects(self._found), []
        for path, why in found if dist.is_main() else ():
            if path in self._known:
                continue
            self._known[path], self._written = why, False
            self._named += 1
            if self._named <= NAMED:
                more = f"; further ones only go to {self.file}" if self._named == NAMED else ""
                self._log.line("warning", f"cannot decode {path}: {why}; another image takes its place{more}")
        return len(found)

    def _write(self) -> None:
        if dist.is_main() and not self._written:
            with whole_file(self.file) as file:
                file.write("".join(f"{path}\t{why}\n" for path, why in sorted(self._known.items())).encode())
            self._written = True

    def _too_many(self, when: str, count: int, total: int, images: ImageSet) -> RunError:
        enough = min(1.0, (20 * count // total + 1) / 20)  # in twentieths
        return RunError(
            f"{when}{count:,} of {total:,} {plural(total, 'image')} {images.source} cannot be decoded "
            f"({count / total:.1%}); data.max_bad_share is {self._max_share:g}. {self.file} lists them; python "
            f"densecl data check {one_line(images.root)} checks all. Repair or remove them, or set -o "
            f"data.max_bad_share={enough:g}; what was saved is whole: continue with --resume auto"
        )


def allowed(max_share: float, images: int) -> float:
    """How many bad images, of so many, stop no run."""
    return max(max_share * images, ALWAYS_ALLOWED if max_share > 0 else 0)


def read_list(file: Path) -> dict[str, str]:
    """Path (escaped) → reason; {} without a file. Lines that are not entries are left out."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return {path: why for path, tab, why in (line.partition("\t") for line in lines) if tab}
