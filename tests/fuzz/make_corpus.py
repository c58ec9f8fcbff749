"""Writes the fuzz target's seeds: the golden checkpoints' configurations, made smaller still, with random weights.

make_corpus.py [FOLDER]        default: the folder `corpus` beside this file
"""

import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "native"))

from make_models import expert_config, golden_config, write_random  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 40,
}
BITS = {
    "llama-biases": 1,
    "llama-linear-rope": 2,
    "llama31-rope-scaling": 3,
    "llama32-tied-head-dim": 4,
    "mistral-sliding-window": 2,
    "qwen2": 1,
    "qwen3": 2,
}
MIXTURE = SMALL | {"expert_intermediate_size": 32, "n_experts": 3, "n_experts_used": 2}
KINDS = {"free8": 2, "even16": 2, "even8": 3, "even16c": 4, "even8c": 1}


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for family, bits in BITS.items():
        config = replace(golden_config(family), **SMALL)
        write_random(folder / f"{family}.gguf", config, bits, group_size=32, half="embed" if bits > 2 else "none")
    config = replace(golden_config("llama-biases"), **SMALL)
    for kind, bits in KINDS.items():
        write_random(folder / f"{kind}.gguf", config, bits, group_size=32, kind=kind)
    config = expert_config(**MIXTURE | {"shared_expert_intermediate_size": 32, "normalize_expert_weights": True})
    write_random(folder / "experts.gguf", config, 2, group_size=32)
    layers = {"num_hidden_layers": 2, "expert_layers": (True, False), "shared_expert_intermediate_size": 0}
    config = expert_config(**MIXTURE | layers | {"n_experts": 2, "norm_after": True})
    write_random(folder / "experts-half.gguf", config, 1, group_size=32, half="gate_proj")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus")
