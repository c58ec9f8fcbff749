"""elutq: quantize LLaMA-family checkpoints with HLQ and run them on a CPU."""
