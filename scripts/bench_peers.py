"""Times elutq against llama.cpp on the same shape, in the same minutes, on the same threads, and prints ratios.

Both run random weights: speed does not depend on values. Passes alternate, ours and theirs, so that both see the same
memory and the same neighbours; the ratio of each pair is taken, and the median of the ratios is printed.

llama.cpp comes as the package llama-cpp-python, built for this machine from its source distribution:

    CMAKE_ARGS="-DGGML_NATIVE=ON" .venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    .venv/bin/python scripts/bench_peers.py --shape llama2-7b --types Q2_K,TQ2_0,Q4_0 --threads 2
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from elutq_cli.benchmark.synthetic import LAYOUT, write_synthetic
from elutq_cli.machine.processor import cpu_model
from elutq_cli.pipeline.layout import Layout
from elutq_cli.shapes import SHAPES, named_shape
from elutq_formats.config import ModelConfig
from elutq_formats.families import find_family
from elutq_formats.names import gguf_name
from elutq_formats.open_source import open_source
from elutq_native import Model

# Byte offsets of the fp16 scales in a block of each ggml type (ggml-common.h); all other bytes may be anything.
SCALE_OFFSETS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,), "TQ2_0": (64,)}
HEAD_TYPE, EMBEDDING_TYPE = "Q6_K", "Q4_K"  # what llama.cpp's own 2-bit mixtures use
CONTEXT = 1024


def random_blocks(random: np.random.Generator, type_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns (..., row bytes) uint8: blocks of a ggml type with small scales and random contents."""
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    blocks = random.integers(0, 256, (math.prod(shape) // block_weights, block_bytes), dtype=np.uint8)
    for offset in SCALE_OFFSETS[type_name]:
        blocks[:, offset : offset + 2] = np.array([0.001], np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_peer(path: Path, config: ModelConfig, type_name: str) -> None:
    """Writes the same shape as a GGUF file that llama.cpp runs."""
    random, family, plain = np.random.default_rng(0), find_family(config.model_type), config.float_names()
    assert family is not None
    writer = gguf.GGUFWriter(path, family.architecture if config.n_experts else "llama", use_temp_file=True)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.n_experts:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_used)
        writer.add_expert_feed_forward_length(config.expert_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    tokens = [f"<{i}>".encode() for i in range(config.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    for name, shape in config.tensor_shapes().items():
        if name in plain:
            routes = len(shape) > 1  # what chooses among experts is random, so that it chooses all of them
            values = random.standard_normal(shape, np.float32) if routes else np.ones(shape, np.float32)
            writer.add_tensor(gguf_name(name), values)
            continue
        kind = {"model.embed_tokens.weight": EMBEDDING_TYPE, "lm_head.weight": HEAD_TYPE}.get(name, type_name)
        blocks = random_blocks(random, kind, shape)
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds(run: Callable[[], object]) -> float:
    """Times one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, float]:
    """Runs both in turn after one warm-up each; returns median seconds of each and the median of the pairs' ratios."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return {
        "elutq_s": median(a for a, _ in times),
        "peer_s": median(b for _, b in times),
        "ratio": median(b / a for a, b in times),
    }


def compare(model: Model, peer_path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for decode and one for each prompt size."""
    from llama_cpp import Llama

    peer = Llama(
        str(peer_path),
        n_ctx=CONTEXT,
        n_batch=512,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )
    rows = []
    with model.session(CONTEXT, options.threads) as session:

        def ours(n: int) -> Callable[[], object]:
            return lambda: (session.rewind(0), session.eval([5] * n)) if n > 1 else session.eval([5])

        def theirs(n: int) -> Callable[[], object]:
            return lambda: (peer.reset(), peer.eval([5] * n)) if n > 1 else peer.eval([5])

        for n in [1, *options.prompts]:
            pairs = options.pairs if n <= options.full_pairs_up_to else max(3, options.pairs // 4)
            row: dict[str, Any] = {"test": f"pp{n}" if n > 1 else "decode", "pairs": pairs}
            row |= alternate(ours(n), theirs(n), pairs)
            row |= {"elutq_ts": n / row["elutq_s"], "peer_ts": n / row["peer_s"]}
            rows.append(row)
            session.rewind(0)
            peer.reset()
    peer.close()
    return rows


def main() -> None:
    """Makes the files, runs every comparison, prints a table and, with --json, writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="llama2-7b", help=f"a checkpoint folder, a GGUF file, or one of {', '.join(SHAPES)}"
    )
    parser.add_argument("--blocks", type=int, help="decoder blocks, for a quick look")
    parser.add_argument("--bits", type=int, default=LAYOUT.bits)
    parser.add_argument("--group-size", type=int, default=LAYOUT.group_size)
    parser.add_argument("--kind", default=LAYOUT.kind, help="of our blocks; ternary weights import as even16")
    parser.add_argument("--types", default="Q2_K,TQ2_0,Q4_0", help="ggml types of the peer's weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--prompts", type=lambda text: [int(n) for n in text.split(",") if n], default=[64, 512])
    parser.add_argument("--full-pairs-up-to", type=int, default=64, help="longer prompts get a quarter of the pairs")
    parser.add_argument("--isa", help="kernels of ours to force")
    parser.add_argument("--work", type=Path, help="folder that keeps the files for another run")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if Path(options.shape).exists():
        with open_source(Path(options.shape)) as checkpoint:
            config = checkpoint.config
    else:
        config = named_shape(options.shape, options.blocks)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        stem = f"{Path(options.shape).name}-{config.num_hidden_layers}"
        layout = Layout(options.bits, options.group_size, options.kind)
        ours = work / f"{stem}-{layout.kind}-{layout.bits}-g{layout.group_size}.gguf"
        if not ours.exists():
            write_synthetic(ours, config, layout)
        with Model(ours, options.isa) as model:
            ours_name = f"elutq {layout.bits_per_weight:g} bits a weight, {layout.kind}, {model.info.isa}"
            print(f"{options.shape}, {config.num_hidden_layers} blocks | {cpu_model()} | {ours_name}")
            print(
                "\n| peer | test | pairs | elutq tokens/s | llama.cpp tokens/s | ratio |\n|---|---|---:|---:|---:|---:|"
            )
            for type_name in options.types.split(","):
                theirs = work / f"{stem}-{type_name}.gguf"
                if not theirs.exists():
                    write_peer(theirs, config, type_name)
                for row in compare(model, theirs, options):
                    rows.append({"peer": type_name, **row})
                    speeds = f"{row['elutq_ts']:.2f} | {row['peer_ts']:.2f} | {row['ratio']:.2f}"
                    print(f"| {type_name} | {row['test']} | {row['pairs']} | {speeds} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    sys.exit(main())
