"""What the whole suite shares: the bundled checkpoint, the golden ones, and model files made from them."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from elutq_cli.pipeline.compute.blas import configure_blas

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and its children too
configure_blas(1)  # before anything imports numpy: spinning BLAS threads starve tests that share the cores

from elutq_native.products import has_rounded_products  # noqa: E402

DATA = Path(__file__).parent / "data"
NOVELS = DATA / "novels-6m"
GOLDEN = DATA / "golden"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}<|end_of_text|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SENTENCEPIECES = ["▁", "▁▁", "▁I", "▁suppose", "▁said", "▁é"]
SENTENCEPIECES += ["s", "aid", ",", "é", "\n", "a", "<0x", "##s", "end</w>", "</s", ">"]
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog")
TEXT = " ".join(random.Random(0).choices(WORDS, k=600)) + "\n"
needs_rounded_products = pytest.mark.skipif(
    not has_rounded_products(), reason="this processor has no products of bfloat16"
)
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture
def rng(request):
    """Random numbers of a seed that the test's name makes."""
    import numpy as np

    seed = [20261122, *request.node.name.encode()]
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def memory():
    """Arrays between guard pages."""
    from guarded import GuardedMemory

    return GuardedMemory()


@pytest.fixture
def text(tmp_path):
    """A file to calibrate on, of words that every golden tokenizer has."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """Returns a function that quantizes a checkpoint (weights only), once for each set of options."""
    from elutq_cli.pipeline.compute.backend import native_backend
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_cli.pipeline.run.quantize import quantize
    from elutq_formats.checkpoint import Checkpoint

    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(checkpoint=NOVELS, **options):
        key = (checkpoint, *sorted(options.items()))
        if key not in made:
            path = folder / f"{len(made)}-{checkpoint.name}.gguf"
            with Checkpoint.open(checkpoint) as source, native_backend(2) as backend:
                quantize(source, path, Recipe(**options), None, backend)
            made[key] = path
        return made[key]

    return make


@pytest.fixture(scope="session")
def novels_2bit(make_model):
    """The bundled model by default: 2 bits, groups of 64, scales of one byte, head and embedding at 4 bits."""
    return make_model()


@pytest.fixture(scope="session")
def chat_model(make_model, tmp_path_factory):
    """The same with a chat template."""
    return make_model(_chat_checkpoint(tmp_path_factory.mktemp("chat") / "chat"))


@pytest.fixture(scope="session")
def endless_model(make_model, tmp_path_factory):
    """The same with a context that takes minutes to fill: its texts do not end before something ends them."""
    folder = _chat_checkpoint(tmp_path_factory.mktemp("endless") / "endless")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 16}))
    return make_model(folder)


def _chat_checkpoint(folder):
    shutil.copytree(NOVELS, folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def sentencepiece_decoder():
    """Llama 1's and 2's."""
    from tokenizers import decoders

    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


def sentencepiece_tokenizer(config, decoder, **parts):
    """A tokenizer as SentencePiece makes them: special tokens, all bytes, SENTENCEPIECES; other parts by name."""
    import tokenizers

    from elutq_formats.tokenizer import Tokenizer

    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SENTENCEPIECES]
    scores = [(piece, -1.0 if piece in SENTENCEPIECES else -9.0) for piece in vocab]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, 0, byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([tokenizers.AddedToken("<tool▁call>", special=False, normalized=False)])
    for name, part in (parts | {"decoder": decoder}).items():
        if part is not None:
            setattr(backend, name, part)
    return Tokenizer(backend, config)


@pytest.fixture(scope="module")
def local(chat_model):
    """A client of a server within this process."""
    from asgi import serving

    with serving(chat_model) as client:
        yield client


@pytest.fixture
def template(local, monkeypatch):
    """Returns a function that gives the model of ``local`` another template."""
    from elutq_cli.generation.template import ChatTemplate

    def use(source):
        monkeypatch.setitem(local.model.__dict__, "chat_template", ChatTemplate(source))

    return use


@pytest.fixture(scope="module")
def driver():
    """Selenium's driver of a headless Chromium; tests are skipped where there is none."""
    from browser import chromium

    with chromium("--window-size=1000,700") as driver:
        yield driver
