"""Let the bundled checkpoint write tests/data/sampled.txt: text that the test suite may calibrate and evaluate on.

usage: PYTHONPATH=.:formats python scripts/sample_text.py > tests/data/sampled.txt

Every sequence starts at BOS and is sampled with the numpy reference at the temperature below; special tokens are not
sampled, so that a sequence ends where its length says. The seed is fixed, but rounding differs between BLAS libraries
and one token drawn differently changes all that follow: another machine gives another text of the same kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elutq_cli.reference import KeyValueCache, Transformer
from elutq_formats.open_source import open_source

MODEL = Path(__file__).resolve().parent.parent / "tests" / "data" / "novels-6m"
TEMPERATURE = 0.8
N_SEQUENCES = 56
N_TOKENS = 255  # with BOS the 256 that the checkpoint was trained on; beyond them it writes scraps


def draw(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one token per row of logits: (n_sequences, vocab_size), by inverting the cumulative distribution."""
    scaled = logits.astype(np.float64) / TEMPERATURE
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    cumulative = np.cumsum(weights, axis=-1)
    points = rng.random(len(logits)) * cumulative[:, -1]
    drawn: NDArray[np.int64] = (cumulative <= points[:, None]).sum(axis=-1)
    return drawn


def sample(model: Transformer, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sample all sequences side by side: (N_SEQUENCES, N_TOKENS), BOS not included."""
    config = model.config
    special = [token for token in (config.bos_token_id, *config.eos_token_ids) if token is not None]
    cache: KeyValueCache = {}
    tokens = np.full((N_SEQUENCES, 1), config.bos_token_id)
    for start in range(N_TOKENS):
        logits = model.head(model.hidden(tokens[:, -1:], start, cache))[:, -1]
        logits[:, special] = -np.inf
        tokens = np.concatenate((tokens, draw(logits, rng)[:, None]), axis=1)
    return tokens[:, 1:]


def main() -> None:
    """Write the sampled sequences to stdout, each followed by an empty line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder or GGUF file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with open_source(arguments.model) as checkpoint:
        tokenizer = checkpoint.tokenizer()
        tokens = sample(Transformer(checkpoint, keep=True), np.random.default_rng(arguments.seed))
    text = "".join(tokenizer.decode(sequence.tolist()).strip() + "\n\n" for sequence in tokens)
    sys.stdout.buffer.write(text.encode("utf-8"))


if __name__ == "__main__":
    main()
