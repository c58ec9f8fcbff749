"""What Ollama's /api tells of models: there is one."""

import hashlib
import math
from datetime import datetime, timezone

from elutq_cli.generation import LanguageModel
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.response import Body
from elutq_cli.server.thinking import may_think
from elutq_cli.version import __version__

API_VERSION = "0.6.4"
"""Of Ollama: clients refuse to speak to older ones."""

NEVER = "9999-12-31T23:59:59Z"


def version(_: LanguageModel, __: str) -> Body:
    """Return the answer to /api/version."""
    return {"version": API_VERSION, "elutq": __version__}


def tags(model: LanguageModel, name: str) -> Body:
    """Return the answer to /api/tags."""
    status = model.status
    entry = {
        "name": name,
        "model": name,
        "modified_at": _modified(model),
        "size": status.st_size,
        # Of what tells that the file is another: all of it would take long to read.
        "digest": hashlib.sha256(f"{name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest(),
        "details": _details(model),
    }
    return {"models": [entry]}


def running(model: LanguageModel, name: str) -> Body:
    """Return the answer to /api/ps: the model stays, and no other device holds a part of it."""
    (entry,) = tags(model, name)["models"]
    return {"models": [entry | {"expires_at": NEVER, "size_vram": 0, "context_length": model.ctx_size}]}


def show(body: object, model: LanguageModel, _: str) -> Body:
    """Return the answer to /api/show, under whatever name the model is asked for.

    Raises:
        RequestError: the body is wrong.
    """
    fields = Fields(body)
    if not isinstance(fields.get("model") or fields.get("name"), str):
        raise RequestError("model must be a name", "model")
    family, template = model.file.config.model_type, model.chat_template
    return {
        "modified_at": _modified(model),
        "template": "" if template is None else template.source,
        "details": _details(model),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": _n_parameters(model),
            f"{family}.context_length": model.ctx_size,
            f"{family}.embedding_length": model.native.info.hidden_size,
            f"{family}.block_count": model.native.info.n_layers,
        },
        "capabilities": _capabilities(model),
    }


def _capabilities(model: LanguageModel) -> list[str]:
    """Return what clients look at before they offer it."""
    capabilities = ["completion"]
    if model.chat_template is not None:
        capabilities += ["tools"] * ("tools" in model.chat_template.source)
        capabilities += ["thinking"] * may_think(model.chat_template)
    return capabilities


def _details(model: LanguageModel) -> Body:
    family = model.file.config.model_type
    return {
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": f"{_n_parameters(model) / 1e6:.1f}M",
        "quantization_level": f"HLQ {model.file.bits_per_weight():.2f}",
    }


def _n_parameters(model: LanguageModel) -> int:
    return sum(math.prod(shape) for shape in model.file.config.tensor_shapes().values())


def _modified(model: LanguageModel) -> str:
    return datetime.fromtimestamp(model.status.st_mtime, timezone.utc).isoformat()
