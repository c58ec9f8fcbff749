"""What a model of experts gives where attention adds nothing, in float64 from its dequantized weights."""

import numpy as np
from gguf_container import Container

from elutq_formats.model_file import ModelFile


def silence_attention(path):
    """Makes the fp16 matrices that attention writes with zeros, so that each token's results are its own."""
    container = Container(path.read_bytes())
    for name, dims, kind, _ in container.tensors:
        if name.endswith(b"attn_output.weight"):
            assert kind == 1
            container.patch(name.decode(), 0, bytes(2 * dims[0] * dims[1]))
    path.write_bytes(container.bytes())


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_pytorch_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def choose(logits, n_used, normalize):
    """Experts of a row and their weights: the likeliest, of equals the first."""
    exponentials = np.exp(logits - logits.max())
    chosen = np.argsort(-logits, kind="stable")[:n_used]
    weights = exponentials[chosen] / exponentials.sum()
    return chosen, weights / weights.sum() if normalize else weights


class Oracle:
    """Hidden states of tokens, after the output norm."""

    def __init__(self, path):
        self.file = ModelFile.open(path)
        self.config = self.file.config

    def load(self, name):
        return self.file.load(name).astype(np.float64)

    def gated(self, x, gate, up, down):
        return (ACTIVATIONS[self.config.hidden_act](x @ gate.T) * (x @ up.T)) @ down.T

    def experts(self, layer, x):
        config, mlp = self.config, f"model.layers.{layer}.mlp"
        gates, ups, downs = (self.load(f"{mlp}.experts.{part}_proj.weight") for part in ("gate", "up", "down"))
        y = np.zeros_like(x)
        for row, logits in enumerate(x @ self.load(f"{mlp}.gate.weight").T):
            for expert, weight in zip(
                *choose(logits, config.n_experts_used, config.normalize_expert_weights), strict=True
            ):
                y[row] += weight * self.gated(x[row], gates[expert], ups[expert], downs[expert])
        if config.shared_expert_intermediate_size:
            shared = (self.load(f"{mlp}.shared_expert.{part}_proj.weight") for part in ("gate", "up", "down"))
            squashed = 1 / (1 + np.exp(-x @ self.load(f"{mlp}.shared_expert_gate.weight")))
            y += squashed[:, None] * self.gated(x, *shared)
        return y

    def hidden(self, tokens):
        """(n, hidden_size) of n tokens."""
        config, x = self.config, self.load("model.embed_tokens.weight")[tokens]
        for layer in range(config.num_hidden_layers):
            branch = config.layer(layer).branches[1]
            stem, epsilon = f"model.layers.{layer}.", config.rms_norm_eps
            before = x if branch.before is None else rms_norm(x, self.load(f"{stem}{branch.before}.weight"), epsilon)
            if config.has_experts(layer):
                y = self.experts(layer, before)
            else:
                y = self.gated(before, *(self.load(f"{stem}mlp.{part}_proj.weight") for part in ("gate", "up", "down")))
            x = x + (y if branch.after is None else rms_norm(y, self.load(f"{stem}{branch.after}.weight"), epsilon))
        return rms_norm(x, self.load("model.norm.weight"), config.rms_norm_eps)
