"""What is fuzzed: for each kind of input, the strategy that makes cases and the function that reads them."""

from __future__ import annotations

from tests.fuzz import configs, lists, packs, resumes, runs, weights
from tests.fuzz.cases import Target

TARGETS = {
    target.name: target
    for target in (
        Target("configs", configs.config_cases, configs.read_config),  # ours, and those of toolboxes
        Target("overrides", configs.override_cases, configs.read_overrides),
        Target("resumes", resumes.resume_cases, resumes.read_resume),
        Target("weights", weights.weight_cases, weights.read_weights),
        Target("packs", packs.pack_cases, packs.read_pack),
        Target("lists", lists.list_cases, lists.read_list, (runs.valid_run(3), runs.valid_run(60))),
    )
}
