"""Bad input of every kind: one line on stderr, exit 2, no traceback, nothing on stdout, no file left behind."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_gguf import describe

from elutq_cli.model_path import refuse_folder
from elutq_formats.errors import ElutqError

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
GOLDEN = DATA / "golden"
ELUTQ = Path(sys.executable).with_name("elutq")


def elutq(*arguments, stdin=""):
    """Run the installed command as a user does, with stdin, stdout and stderr in pipes."""
    command = [str(argument) for argument in (ELUTQ, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=60)


def assert_refused(result, *words):
    """One line that names what is wrong, and nothing else."""
    assert result.stderr.startswith("elutq: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr


def truncated(data):
    return data[:-4096]


def cut_in_the_header(data):
    return data[:300]


def empty(data):
    return b""


def wrong_magic(data):
    return b"GGML" + data[4:]


def unknown_version(data):
    return data[:4] + struct.pack("<I", 99) + data[8:]


def tensor_past_the_end(data):
    name = b"blk.0.attn_q.weight"
    at = data.index(struct.pack("<Q", len(name)) + name + struct.pack("<I", 2)) + 8 + len(name) + 4 + 16 + 4
    return data[:at] + struct.pack("<Q", 1 << 40) + data[at + 8 :]


def absurd_tensor_count(data):
    return data[:8] + struct.pack("<Q", 1 << 62) + data[16:]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncated, "past the end"),
        (cut_in_the_header, ""),
        (empty, ""),
        (wrong_magic, "GGUF"),
        (unknown_version, "version"),
        (tensor_past_the_end, "past the end"),
        (absurd_tensor_count, ""),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [("info",), ("run", "-p", "Once"), ("eval", "-f", DATA / "sampled.txt", "-c", 32)],
    ids=lambda arguments: arguments[0],
)
def test_damaged_model_file(novels_2bit, tmp_path, damage, word, arguments):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(novels_2bit.read_bytes()))
    verb, *flags = arguments
    assert_refused(elutq(verb, path, *flags), "damaged.gguf", word)


@pytest.mark.parametrize("verb", ["info", "run"])
def test_model_that_is_no_file(tmp_path, verb):
    flags = () if verb == "info" else ("-p", "Once")
    assert_refused(elutq(verb, tmp_path / "nothing.gguf", *flags), "nothing.gguf", "No such file")
    assert_refused(elutq(verb, tmp_path, *flags), str(tmp_path))


def test_checkpoint_given_where_a_model_file_belongs():
    assert_refused(elutq("run", NOVELS, "-p", "Once"), str(NOVELS))


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def missing_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncated_shard(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 64)


def unsupported_architecture(folder):
    change_config(folder, model_type="gpt2")


def mixture_of_experts(folder):
    change_config(folder, model_type="gpt_oss", num_local_experts=32)


def quantized_already(folder):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    for file in folder.glob("model*"):
        file.write_bytes(file.read_bytes().replace(b"q_proj.weight", b"q_proj.packed"))


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama"')


def no_config(folder):
    (folder / "config.json").unlink()


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (missing_shard, "model-00002-of-00002.safetensors"),
        (truncated_shard, "model-00002-of-00002.safetensors"),
        (unsupported_architecture, "gpt2"),
        (mixture_of_experts, "attention sinks"),
        (quantized_already, "quantiz"),
        (broken_config, "config.json"),
        (no_config, "config.json"),
        (no_tokenizer, "tokenizer.json"),
    ],
)
def test_damaged_checkpoint(tmp_path, damage, word):
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "llama2-gqa-sharded", folder)
    damage(folder)
    result = elutq("quantize", folder, "-o", tmp_path / "out.gguf", "--group-size", 32)
    assert_refused(result, word)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--group-size", 128), ("128", "groups of 32 (--group-size)")),  # hidden size 96
        (("--group-size", 48), ("48",)),
        (("--bits", 5), ("bits 5",)),
        (("--group-size", 32, "--sequence-length", 64, "--calibration", "nothing.txt"), ("nothing.txt",)),
    ],
)
def test_impossible_recipe(tmp_path, flags, words):
    result = elutq("quantize", GOLDEN / "smollm-tied", "-o", tmp_path / "out.gguf", *flags)
    assert_refused(result, *words)
    assert list(tmp_path.iterdir()) == []


def test_output_that_exists_is_kept(tmp_path):
    output = tmp_path / "out.gguf"
    output.write_text("precious")
    assert_refused(elutq("quantize", GOLDEN / "smollm-tied", "-o", output, "--group-size", 32), "out.gguf", "--force")
    assert output.read_text() == "precious"


def test_output_folder_that_does_not_exist(tmp_path):
    result = elutq("quantize", GOLDEN / "smollm-tied", "-o", tmp_path / "no" / "out.gguf", "--group-size", 32)
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1 and "no" in result.stderr


@pytest.mark.parametrize(
    ("flags", "stdin", "words"),
    [
        (("-p", ""), "", ("prompt is empty",)),
        (("-p", "-"), "", ("prompt is empty",)),
        (("-p", "Once upon a time", "-c", 2), "", ("the context holds 2", "a larger context (-c")),
        (("-p", "-"), "word " * 2000, ("the context holds 1024", "shorten the prompt")),
        (("-p", "Once", "-c", 4096), "", ("4096", "1024")),
        (("-p", "Once", "-c", 0), "", ("context of 0",)),
        (("-p", "Once", "-n", -2), "", ("(-n) is -2",)),
        (("-p", "Once", "--temp", -1), "", ("temperature is -1",)),
        (("-p", "Once", "--top-p", 2), "", ("top-p is 2",)),
        (("-p", "Once", "--min-p", 2), "", ("min-p is 2",)),
        (("-p", "Once", "--repeat-penalty", 0), "", ("repeat penalty is 0",)),
        (("-p", "Once", "--cache-type", "q4"), "", ("cache type q4", "f16 or q8")),
        (("-p", "Once", "-f", "prompt.txt"), "", ("-p TEXT", "-f FILE")),
        (("-f", "nothing.txt"), "", ("nothing.txt", "No such file")),
        (("-f", DATA), "", ("cannot read",)),
        (("-f", NOVELS / "model.safetensors"), "", ("not UTF-8",)),
    ],
)
def test_impossible_run(novels_2bit, flags, stdin, words):
    assert_refused(elutq("run", novels_2bit, *flags, stdin=stdin), *words)


def test_unknown_kernels(novels_2bit, monkeypatch):
    monkeypatch.setenv("ELUTQ_ISA", "sse9")
    assert_refused(elutq("run", novels_2bit, "-p", "Once"), "sse9")
    monkeypatch.setenv("ELUTQ_ISA", os.fsdecode(b"\xff"))
    assert_refused(elutq("run", novels_2bit, "-p", "Once"), 'kernels "', "do not exist here")


@pytest.mark.parametrize(
    "arguments", [("info",), ("bench", "-n", 1, "-p", 0), ("run", "-p", "Once"), ("write", "-o", "x")]
)
def test_a_checkpoint_where_a_model_file_is_wanted(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    assert_refused(elutq(command, NOVELS, *options), f"elutq quantize {NOVELS} -o model.gguf makes one of a checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_model_file_is_wanted_is_advised_by_what_it_holds(novels_2bit, tmp_path):
    def advice():
        with pytest.raises(ElutqError) as error:
            refuse_folder(tmp_path)
        return str(error.value).removeprefix(f"{tmp_path} is not a model file: ")

    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert advice() == f"elutq import {tmp_path} -o model.gguf makes one of a quantized checkpoint"
    (tmp_path / "config.json").unlink()
    for number in (2, 1):
        describe(NOVELS).write(tmp_path / f"m-0000{number}-of-00002.gguf")
    first = tmp_path / "m-00001-of-00002.gguf"
    assert advice() == f"elutq quantize {first} -o model.gguf makes one of a GGUF file"
    shutil.copy(novels_2bit, tmp_path / "ours.gguf")
    assert advice() == f"it is a folder; give {tmp_path / 'ours.gguf'}"


@pytest.mark.parametrize("arguments", [("info",), ("bench", "-n", 1, "-p", 0), ("run", "-p", "Once")])
def test_a_gguf_file_of_other_tools_where_a_model_file_is_wanted(arguments, tmp_path):
    command, *options = arguments
    path = describe(NOVELS).write(tmp_path / "foreign.gguf")
    assert_refused(elutq(command, path, *options), f"{path} is a GGUF file, but not one of elutq: elutq quantize makes")


def test_no_model_is_told_before_a_prompt_is_read():
    assert_refused(elutq("run"), "give one model")
