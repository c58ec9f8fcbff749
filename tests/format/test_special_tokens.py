"""Special tokens: which file of a checkpoint has the last word, and how they reach the tokenizer of a model file."""

import json
import shutil

import pytest
import tokenizers
from samples import GOLDEN, tensor_sources
from tokenizers import processors

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, FormatError
from elutq_formats.gguf import ValueType
from elutq_formats.metadata import Metadata
from elutq_formats.model_file import ModelFile
from elutq_formats.model_metadata import SPECIAL_TOKENS, read_special_tokens
from elutq_formats.model_writer import write_model
from elutq_formats.origin import Origin
from elutq_formats.special_tokens import vocabulary_ids
from elutq_formats.tokenizer import Tokenizer

ADDED = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint whose vocabulary begins with <s>, </s>, <|eot|>, <|eom|>, <unk> and has no post-processor."""
    return shutil.copytree(GOLDEN / "smollm-tied", tmp_path / "checkpoint")


def opened(folder, **files):
    """Open the checkpoint with files replaced (by name without .json; of config.json, fields are)."""
    for name, contents in files.items():
        path = folder / f"{name}.json"
        old = json.loads(path.read_text()) if name in ("config", "tokenizer") else {}
        path.write_text(json.dumps(old | contents))
    return Checkpoint.open(folder)


def written(checkpoint, path):
    write_model(
        path,
        checkpoint.config,
        tensor_sources(checkpoint),
        origin=Origin("x", "x"),
        tokenizer_json=checkpoint.tokenizer_json,
        special_tokens=checkpoint.special_tokens,
    )
    return ModelFile.open(path)


def test_the_tokenizers_bos_comes_before_both_configurations(folder):
    config, generation = {"bos_token_id": 2}, {"bos_token_id": 4}
    named = {"bos_token": "<s>"}
    assert opened(folder, config=config).config.bos_token_id == 2
    assert opened(folder, config=config, generation_config=generation).config.bos_token_id == 4
    checkpoint = opened(folder, config=config, generation_config=generation, tokenizer_config=named)
    assert checkpoint.config.bos_token_id == 0


def test_eos_is_what_any_file_says_and_the_tokenizers_is_first(folder):
    checkpoint = opened(
        folder,
        config={"eos_token_id": 1},
        generation_config={"eos_token_id": [1, 3]},
        tokenizer_config={"eos_token": {**ADDED, "content": "<|eot|>"}},
    )
    assert checkpoint.config.eos_token_ids == (2, 1, 3)


def test_end_of_turn_and_of_message_that_a_tokenizer_names_end_a_text(folder):
    named = {"eos_token": "</s>", "eot_token": "<|eot|>", "eom_token": "<|eom|>", "image_token": "<unk>"}
    assert opened(folder, tokenizer_config=named).config.eos_token_ids == (1, 2, 3)


def test_a_null_token_is_none_and_an_unknown_spelling_has_no_id(folder):
    named = {"bos_token": None, "eos_token": "<|nowhere|>", "pad_token": "</s>"}
    checkpoint = opened(folder, config={"bos_token_id": 0, "eos_token_id": 1}, tokenizer_config=named)
    assert checkpoint.special_tokens == {"eos_token": "<|nowhere|>", "pad_token": "</s>"}
    assert (checkpoint.config.bos_token_id, checkpoint.config.eos_token_ids) == (0, (1,))


def test_special_tokens_map_has_the_last_word_unless_added_tokens_are_listed(folder):
    old = {"bos_token": "<unk>", "pad_token": {"content": "</s>", "lstrip": False}}
    named = {"bos_token": "<s>", "add_bos_token": True}
    merged = opened(folder, tokenizer_config=named, special_tokens_map=old).special_tokens
    assert merged == {"bos_token": "<unk>", "pad_token": "</s>"}
    listed = opened(folder, tokenizer_config={**named, "added_tokens_decoder": {}}, special_tokens_map=old)
    assert listed.special_tokens == {"bos_token": "<s>"}


def test_names_of_a_models_own_are_kept(folder):
    named = {"bos_token": "<s>", "image_token": "<|eot|>", "extra_special_tokens": {"call_token": "<|eom|>", "x": "y"}}
    expected = {"bos_token": "<s>", "image_token": "<|eot|>", "call_token": "<|eom|>"}
    assert opened(folder, tokenizer_config=named).special_tokens == expected


@pytest.mark.parametrize("value", [7, ["<s>"], {"content": 7}])
def test_a_token_of_another_type_is_refused(folder, value):
    with pytest.raises(CheckpointError, match="eos_token must be a token"):
        opened(folder, tokenizer_config={"eos_token": value})


def test_ids_are_found_in_every_kind_of_vocabulary():
    added = [{"id": 7, "content": "</s>"}, {"id": "8", "content": "<pad>"}, {"content": ["<s>"]}, 9]
    wanted = ["<s>", "</s>", "<pad>", "<none>"]
    for vocabulary in ({"a": 0, "<s>": 1, "</s>": 2}, [["a", 0.0], ["<s>", -1.5], [], 3, ["</s>", 0.0]]):
        tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": added}
        assert vocabulary_ids(tokenizer, wanted) == {"<s>": 1, "</s>": 7}
    assert vocabulary_ids({"model": None, "added_tokens": {}}, wanted) == {}


def test_special_tokens_travel_to_the_tokenizer_of_the_model_file(folder, tmp_path):
    named = {"bos_token": "<s>", "eos_token": "<|eot|>", "pad_token": "</s>", "unk_token": "<unk>"}
    file = written(opened(folder, config={"eos_token_id": 1}, tokenizer_config=named), tmp_path / "model.gguf")
    assert file.tokenizer().special_tokens == named
    assert file.tokenizer().eos_token_ids == (2, 1)
    assert file.provenance == {}


@pytest.mark.parametrize("added", [None, False, True])
def test_the_post_processor_alone_says_whether_a_text_gets_bos(folder, tmp_path, added):
    """What transformers 5 does: it passes over add_bos_token and add_eos_token where there is a tokenizer.json."""
    named = {"bos_token": "<s>", "eos_token": "</s>"} | dict.fromkeys(("add_bos_token", "add_eos_token"), added)
    plain = opened(folder, config={"bos_token_id": 2}, generation_config={"bos_token_id": 4}, tokenizer_config=named)
    assert plain.tokenizer().encode("ab", add_special_tokens=True) == [5, 6]
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    file = written(Checkpoint.open(folder), tmp_path / "model.gguf")
    assert file.tokenizer().encode("ab", add_special_tokens=True) == [0, 5, 6]
    assert file.tokenizer().prefix == (file.config.bos_token_id,) == (0,)


def test_a_file_that_names_no_special_tokens_spells_those_of_its_configuration(folder, tmp_path):
    file = written(opened(folder, config={"bos_token_id": 0, "eos_token_id": [3, 1]}), tmp_path / "model.gguf")
    assert file.special_tokens is None
    assert file.tokenizer().special_tokens == {"bos_token": "<s>", "eos_token": "<|eom|>"}


def test_a_named_token_that_is_plain_in_the_vocabulary_is_special(folder, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    plain = [entry for entry in tokenizer["added_tokens"] if entry["content"] != "<|eot|>"]
    checkpoint = opened(folder, tokenizer={"added_tokens": plain}, tokenizer_config={"eos_token": "<|eot|>"})
    named = checkpoint.tokenizer()
    assert 2 not in Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config).encode("<|eot|>")
    assert named.encode("<|eot|>") == [2]
    assert named.decode([2]) == ""


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"bos_token": 1}', '{"messages": "x"}', '{"a b_token": "x"}', '{"_token": null}']
)
def test_spellings_of_a_damaged_file_are_refused(text):
    metadata = Metadata({SPECIAL_TOKENS: text}, {SPECIAL_TOKENS: ValueType.STRING}, "x.gguf")
    with pytest.raises(FormatError, match=r"x\.gguf is damaged: elutq\.special_tokens"):
        read_special_tokens(metadata)
