"""Fixtures of the format tests."""

import pytest
from samples import FAMILIES, GOLDEN, write_random_model


@pytest.fixture(params=FAMILIES, ids=lambda path: path.name)
def family(request):
    """Every golden checkpoint."""
    return request.param


@pytest.fixture(scope="session")
def scaled_model(tmp_path_factory):
    """A model file with RoPE scaling, thus with every kind of tensor."""
    path = tmp_path_factory.mktemp("model") / "scaled.gguf"
    write_random_model(path, GOLDEN / "llama31-rope-scaling")
    return path
