"""scripts/make_checkpoint.py: what it writes opens, quantizes, and has the shape and the spread asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "make_checkpoint.py"


def make(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_sharded_slice_opens_and_quantizes(tmp_path):
    folder, output = tmp_path / "checkpoint", tmp_path / "out.gguf"
    assert make("smollm2-135m", "--blocks", 1, "-o", folder, "--shard-size", 0.004).returncode == 0
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) == 3  # the embedding is larger than a shard
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.config.num_hidden_layers, checkpoint.config.hidden_size) == (1, 576)
        query, output_projection = (
            checkpoint.load(f"model.layers.0.self_attn.{name}_proj.weight") for name in ("q", "o")
        )
        assert 0.9 < query.std() * 24 < 1.3
        assert 0.9 < output_projection.std() * 24 * 2**0.5 < 1.3
        assert np.isfinite(query).all()
        assert abs(checkpoint.load("model.norm.weight").mean() - 1) < 0.05
    options = ["--bits", "2", "--group-size", "64", "--embedding-bits", "16", "--output-bits", "16"]
    command = [sys.executable, "-m", "elutq_cli", "quantize", str(folder), "-o", str(output), *options]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert ModelFile.open(output).config.vocab_size == 49152


def test_refusals(tmp_path):
    result = make("llama9", "-o", tmp_path / "x")
    assert result.returncode == 1
    assert "choose one of" in result.stderr
    (tmp_path / "notes").write_text("mine")
    assert "is not empty" in make("smollm2-135m", "-o", tmp_path).stderr
    assert "has 1 to 30 blocks" in make("smollm2-135m", "--blocks", 99, "-o", tmp_path / "y").stderr
