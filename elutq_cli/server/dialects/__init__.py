"""The APIs that are spoken, one a file: OpenAI's own, and others as translations of it."""
