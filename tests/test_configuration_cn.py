"""The Chinese page of the configuration: a meaning for every key that has one in English, and no other."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_every_key_of_a_config_has_a_chinese_meaning():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(hooks := importlib.util.module_from_spec(spec))
    asked: dict[str, str] = {}
    list(hooks.configuration(lambda key, english: asked.setdefault(key, english)))
    meanings = yaml.safe_load((DOCS / "configuration_cn.yaml").read_text(encoding="utf-8"))
    known = {key for key in asked if key in meanings or key.rpartition(".")[2] in meanings}
    assert [key for key, english in asked.items() if english and key not in known] == []
    assert set(meanings) <= {*asked, *(key.rpartition(".")[2] for key in asked)}
    page = "\n".join(hooks.configuration_cn())
    assert re.findall(r"\b(?:number|list of|section|required|from|over|or)\b", page) == []
