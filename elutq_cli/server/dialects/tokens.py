"""llama.cpp's /tokenize, /detokenize and /apply-template, with vLLM's names for the same."""

from elutq_cli.generation import LanguageModel
from elutq_cli.server import unsupported
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.messages import render
from elutq_cli.server.request import check_tokens
from elutq_cli.server.response import Body
from elutq_cli.server.tools import read_tools

SOURCES = {"content": False, "prompt": True, "messages": False}
"""What a text can come as, and whether the tokenizer adds its own tokens where nobody says (BOS)."""

ONLY = {"parse_special": (True,), "return_token_strs": (False,)}


def tokenize(body: object, model: LanguageModel, _: str) -> Body:
    """Return the tokens of a text or a conversation.

    Raises:
        RequestError: the body is wrong.
        ContextOverflowError: the text is far longer than the context.
    """
    fields = Fields(body)
    fields.refuse(ONLY)
    given = [name for name in SOURCES if fields.get(name) is not None]
    if len(given) != 1:
        raise RequestError("give one of content, prompt and messages", "content")
    (source,) = given
    text = _conversation(fields, model) if source == "messages" else fields.get(source)
    if not isinstance(text, str):
        raise RequestError(f"{source} must be a text", source)
    adds = fields.flag("add_special", fields.flag("add_special_tokens", SOURCES[source]))
    tokens = model.encode_text(text, adds)
    counted = {"count": len(tokens), "max_model_len": model.ctx_size}
    if not fields.flag("with_pieces"):
        return {"tokens": tokens, **counted}
    return {"tokens": [{"id": token, "piece": _piece(token, model)} for token in tokens], **counted}


def detokenize(body: object, model: LanguageModel, _: str) -> Body:
    """Return the text of tokens, special ones spelled out.

    Raises:
        RequestError: the body is wrong, or the model has not all of them.
    """
    tokens = Fields(body).get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise RequestError("tokens must be a list of token ids", "tokens")
    check_tokens(tokens, model, "tokens")
    text = model.tokenizer.decode(tokens, skip_special_tokens=False)
    return {"content": text, "prompt": text}


def apply_template(body: object, model: LanguageModel, _: str) -> Body:
    """Return the text that a chat begins with.

    Raises:
        RequestError: the body is wrong.
        ElutqError: the template refuses the messages.
    """
    return {"prompt": _conversation(Fields(body), model)}


def _conversation(fields: Fields, model: LanguageModel) -> str:
    fields.refuse({name: unsupported.CHAT[name] for name in unsupported.CHAT if name != "add_special_tokens"})
    tools = read_tools(fields, model)
    return render(fields, model.required_chat_template, tools.described if tools else None)


def _piece(token: int, model: LanguageModel) -> str | list[int]:
    """Return a token's text, or its bytes where they are no whole characters."""
    piece = model.tokenizer.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
