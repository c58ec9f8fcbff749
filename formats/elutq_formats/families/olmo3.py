"""OLMo 3: OLMo 2 with a window in three layers of four, whose RoPE is never scaled."""

from elutq_formats.families.olmo2 import DEFAULTS, parts
from elutq_formats.families.olmo2 import read as read_olmo2
from elutq_formats.family import Family, Settings, layers_of_kind, read_ropes
from elutq_formats.fields import Fields


def read(fields: Fields) -> Settings:
    """Read which layers slide, and RoPE, which is scaled in the others alone."""
    return {**read_olmo2(fields), **layers_of_kind(fields, 4), **read_ropes(fields, 500000.0, None)}


FAMILY = Family("olmo2", read, {**DEFAULTS, "sliding_window": 4096}, parts)
