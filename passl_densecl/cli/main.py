"""The command `densecl`: every verb by its name. `tools/VERB.py` in a clone are doors to the same verbs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from passl_densecl import __version__
from passl_densecl.cli.command import Parser, Verb, run_command
from passl_densecl.errors import InputError
from passl_densecl.text import suggestion

VERBS = {  # verb → (module of passl_densecl.cli, name in it, what it does)
    "train": ("train", "main", "pre-train a backbone, or evaluate one linearly"),
    "config ls": ("config", "ls", "list the packaged configs"),
    "config show": ("config", "show", "print one"),
    "config cp": ("config", "cp", "copy one to a file to edit"),
    "eval knn": ("evaluate", "knn", "nearest neighbors of pooled features: nothing is trained"),
    "eval linear": ("evaluate", "linear", "a linear classifier on cached features (the fast preset)"),
    "eval multihead": ("evaluate", "multihead", "the same on the stem and each of the four stages"),
    "eval svm": ("evaluate", "svm", "VOC07's protocol: a linear SVM per class"),
    "eval lowshot": ("evaluate", "lowshot", "the same with 1 to 96 images per class"),
    "eval semi": ("evaluate", "semi", "fine-tune all of it on 1 % or 10 % of the labels"),
    "eval dense": ("evaluate", "dense", "segmentation by a linear head on the frozen map: mIoU"),
    "eval correspondence": ("evaluate", "correspondence", "do the cells of two crops find each other?"),
    "extract": ("extract", "main", "take the backbone out of a checkpoint"),
    "convert": ("convert", "main", "write weights as another project expects them"),
    "info": ("info", "main", "what a config's network costs, or what a weight file is"),
    "export": ("export", "main", "write a network for paddle.inference or ONNX"),
    "download": ("hub", "download", "published weights, from the model zoo or Hugging Face"),
    "push": ("hub", "push", "publish weights on Hugging Face"),
    "embed": ("embed", "main", "features of a folder of images as a table"),
    "plot match": ("plot", "match", "lines between the cells of two images that match"),
    "plot heatmap": ("plot", "heatmap", "how similar every cell is to one cell"),
    "plot pca": ("plot", "pca", "features as colors"),
    "plot embedding": ("plot", "embedding", "the images of a folder as points in the plane"),
    "plot views": ("plot", "views", "pairs of augmented views, as training sees them"),
    "plot schedule": ("plot", "schedule", "learning rate and λ over a run"),
    "plot curves": ("plot", "curves", "losses, accuracy and speed of runs"),
    "report": ("report", "report", "everything about a run on one HTML page"),
    "compare": ("report", "compare", "runs side by side on one HTML page"),
    "data check": ("check_data", "main", "find the images that cannot be read"),
    "data pack": ("pack", "main", "pack a folder of images into one LMDB file"),
    "transfer prepare": ("transfer", "prepare", "weights and a config for a detector or segmenter"),
    "transfer check": ("transfer", "check", "compare a config with the published protocol"),
    "doctor": ("doctor", "main", "is this machine ready to train? what is missing?"),
    "demo": ("demo", "main", "the whole way on real photographs, in minutes"),
}
GROUPS = {  # verbs of two words; and those that have moved, for the doors of a clone
    "eval": "judge backbones; several --weights, 'random' among them, give a column each",
    "plot": "pictures of training, of runs, and of what a backbone has learned",
    "config": "the packaged configs",
    "data": "sets of images",
    "transfer": "start detectors and segmenters from the weights",
}
MOVED = {"plot report": "report"}


def verb_of(name: str) -> Verb:
    """The verb of this name."""
    module, member, _ = VERBS[name]
    found = import_module(f"passl_densecl.cli.{module}")
    return found.VERBS[member] if hasattr(found, "VERBS") else getattr(found, member)


def chosen(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that the first words name (which may not exist), and the other words."""
    count = 2 if words[:1] and words[0] in GROUPS else 1
    name = " ".join(words[:count])
    return MOVED.get(name, name), list(words[count:])


def parse(words: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """(Verb, options) of a command line without its first word."""
    name, left = chosen(words)
    return name, verb_of(name).parser(f"densecl {name}").read(left)


def main(words: Sequence[str] | None = None, *, door: str | None = None) -> int:
    """Run the verb that the first words name; the exit code, as `run_command` has it. `door`: the name of a program
    that stands for the first word."""
    words = list(sys.argv[1:] if words is None else words)
    complete()
    if words[:1] in (["--version"], ["-V"]):
        print(f"passl_densecl {__version__}")
        return 0
    name, left = chosen(words)
    if name in VERBS:
        return verb_of(name)(left, prog=f"{door} {words[1]}" if door else f"densecl {name}")
    group = words[0] if words and words[0] in GROUPS else ""
    if words in ([], [group]) or words[-1] in ("-h", "--help"):
        print(usage(group))
        return 2 if words in ([], [group]) else 0
    return run_command(lambda: refuse(name, group), f"{door or 'densecl'}: ")


def refuse(name: str, group: str) -> int:
    known = [*VERBS, *GROUPS] if not group else [verb for verb in VERBS if verb.startswith(group + " ")]
    raise InputError(
        f"no verb {name!r}{suggestion(name, known)} ('densecl{' ' + group if group else ''} -h' lists them)"
    )


def usage(group: str = "") -> str:
    """The verbs, or those of a group, a line each."""
    shown = {verb: text for verb, (_, _, text) in VERBS.items() if not group or verb.startswith(group + " ")}
    width = max(map(len, shown))
    title = f"{group}: {GROUPS[group]}" if group else "Dense contrastive pre-training (DenseCL) for PaddlePaddle."
    lines = [f"  {verb:<{width}}  {text}" for verb, text in shown.items()]
    return "\n".join([title, "", *lines, "", "options and examples of a verb: densecl VERB --help"])


def complete() -> None:
    """Answer the shell that asks for completions (argcomplete), where this process was started for that."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    typed = os.environ.get("COMP_LINE", "").split()[1:]
    parser = Parser(prog="densecl")
    verbs = parser.add_subparsers()
    groups: dict[str, object] = {}
    for name in VERBS:
        first, _, second = name.partition(" ")
        parent = verbs
        if second:
            if first not in groups:
                groups[first] = verbs.add_parser(first).add_subparsers()
            parent = groups[first]
        one = parent.add_parser(second or first)  # type: ignore[attr-defined]
        if name == chosen(typed)[0]:
            verb_of(name).add_options(one)
    argcomplete.autocomplete(parser)


def tool(verb: str) -> int:
    """What tools/NAME.py does: the verb, or group of verbs, with the program's own name in messages."""
    program = Path(sys.argv[0]).name
    if verb in GROUPS:
        return main([verb, *sys.argv[1:]], door=program)
    return verb_of(verb)(sys.argv[1:], prog=program)
