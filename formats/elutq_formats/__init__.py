"""Everything about bytes on disk: GGUF containers, HLQ records, safetensors checkpoints and tokenizers.

The file format itself is described byte by byte in ``formats/SPEC.md``.
"""
