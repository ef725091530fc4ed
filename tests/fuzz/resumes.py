"""Runs that are continued with other settings, and records that somebody has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from passl_densecl.config import load_config, parse_config
from tests.fuzz.cases import CONFIGS, ROOT, Case, Violation, only_input_errors
from tests.fuzz.configs import override_cases
from tests.fuzz.mutate import mutated_tree, weighted

NETWORK = ("depth", "stem_stride", "last_stride", "hidden_dim", "out_dim", "num_grid", "queue_len")
SETTINGS = "seed=7 epochs=9999 epochs=1 model.depth=34 model.stem_stride=2 model.last_stride=1 batch_size=64 "
SETTINGS += "model.temperature=0.3 model.loss_lambda=0 optimizer.lr=1 log_every_steps=3 data.num_workers=1 "
SETTINGS += "name=other data.root=elsewhere model.queue_len=auto amp.enabled=true checkpoint.keep=9"


def resume_cases(scratch: Path) -> st.SearchStrategy[Case]:
    """A record (of a packaged config, mostly as it is), and what is asked."""
    files = st.sampled_from(CONFIGS)
    trees = files.map(lambda path: load_config(path).model_dump(mode="json"))
    states = st.one_of(trees, trees.flatmap(mutated_tree), st.sampled_from([None, [], "x", {"task": "linear"}]))
    state = states.map(lambda tree: {"config": tree, "classes": ["a", "b"]})
    record = weighted((3, state), (1, state.flatmap(mutated_tree)))
    asked = weighted(
        (3, st.lists(st.sampled_from(SETTINGS.split()), max_size=3)),
        (1, override_cases(scratch).map(lambda case: list(case.arguments[1:]))),
    )
    name = files.map(lambda path: str(path.relative_to(ROOT)))
    accept = st.sampled_from(["", "accept"])
    return st.builds(
        lambda tree, name, accept, given: Case({"state.json": json.dumps(tree).encode()}, (name, accept, *given)),
        record,
        name,
        accept,
        asked,
    )


def read_resume(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    # Here, because they import Paddle, which no other target needs.
    from passl_densecl.engine.record import check_classes, check_settings
    from passl_densecl.reliability.checkpoint import Checkpoint

    state: Any = json.loads((folder / "state.json").read_text())
    start = Checkpoint(
        folder / "run" / "checkpoints" / "epoch_0001", 1, {}, {}, state if isinstance(state, dict) else {}
    )
    name, accept, *overrides = arguments
    with only_input_errors():
        config = load_config(ROOT / name, overrides)
        check_classes(start, ["a", "b"])
        changes = check_settings(start, config, accept_changes=bool(accept))
        recorded = start.state.get("config")
        if not isinstance(recorded, dict):
            return
        before = parse_config(recorded)
        if before.task != config.task:
            raise Violation("another task was accepted")
        for key in NETWORK:
            if getattr(before.model, key, None) != getattr(config.model, key, None):
                raise Violation(f"model.{key} was accepted")
        if not accept and (before.seed, before.batch_size) != (config.seed, config.batch_size):
            raise Violation("another recipe was accepted without a word")
        if before != config and not changes:
            raise Violation("a difference was not noticed")
