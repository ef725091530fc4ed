"""What a run is asked to do: every knob, typed (schema.py), and YAML files of them (files.py)."""

from passl_densecl.config.dialect import check_aliases  # noqa: F401
from passl_densecl.config.files import dump_config, load_config, parse_config  # noqa: F401
from passl_densecl.config.schema import (  # noqa: F401
    DEPTHS,
    QUEUE_LEN_MAX,
    RANDOM,
    AmpConfig,
    BackboneConfig,
    BackboneSpec,
    Config,
    EvaluationConfig,
    HeadSpec,
    LinearConfig,
    PretrainConfig,
    PretrainModelConfig,
    RunConfig,
    SGDConfig,
    path_text,
)
