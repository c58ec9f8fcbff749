"""`elutq run` for one text, through the real command: text on stdout, everything else on stderr."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import started

ELUTQ = Path(sys.executable).with_name("elutq")
PROMPT = "It was a dark night, and"


def elutq(*arguments, stdin=None, **environment):
    command = [str(argument) for argument in (ELUTQ, "run", *arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env=os.environ | environment,
        timeout=300,
    )


def text_of(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.decode("utf-8")


def test_text_on_stdout_statistics_on_stderr(novels_2bit):
    result = elutq(novels_2bit, "-p", PROMPT, "-n", 12, "--temp", 0, "-t", 1)
    text, statistics = text_of(result), result.stderr.decode()
    assert text.endswith("\n") and text.count("\n") <= 3
    for word in ("prompt 8 tokens", "generated 12 tokens", "context 20 tokens, KV cache", "peak memory", "1 thread"):
        assert word in statistics
    assert "\x1b" not in text + statistics


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_text_from_run_to_run_and_with_one_or_two_threads(novels_2bit, seed):
    texts = {
        text_of(elutq(novels_2bit, "-p", PROMPT, "-n", 150, "-s", seed, "-t", threads)) for threads in (1, 2, 1, 2)
    }
    assert len(texts) == 1


def test_another_seed_another_text(novels_2bit):
    assert len({text_of(elutq(novels_2bit, "-p", PROMPT, "-n", 30, "-s", seed)) for seed in (1, 2)}) == 2


def test_json_holds_text_tokens_and_statistics(novels_2bit):
    flags = ("-p", PROMPT, "-n", 10, "--temp", 0)
    values = json.loads(text_of(result := elutq(novels_2bit, *flags, "--json")))
    assert result.stderr == b""
    assert values["text"] + "\n" == text_of(elutq(novels_2bit, *flags))
    assert len(values["tokens"]) == values["n_gen"] == 10
    assert values["finish_reason"] == "length"
    assert values["ctx_size"] == values["n_prompt"] + 10
    assert values["kv_bytes"] == values["ctx_size"] * 3072
    assert values["peak_rss"] > 1 << 20
    assert "logprobs" not in values


def test_an_int8_cache_takes_half_the_memory(novels_2bit):
    flags = ("-p", PROMPT, "-n", 10, "--temp", 0, "--cache-type", "q8")
    values = json.loads(text_of(elutq(novels_2bit, *flags, "--json")))
    assert values["kv_bytes"] == values["ctx_size"] * 2 * 6 * 2 * (64 + 4)
    assert values["cache_type"] == "q8" and values["n_gen"] == 10


def test_prompt_from_stdin_from_a_file_and_from_the_command_line_are_the_same(novels_2bit, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    flags = ("-n", 8, "--temp", 0)
    texts = {
        text_of(elutq(novels_2bit, *flags, "-p", PROMPT)),
        text_of(elutq(novels_2bit, *flags, "-p", "-", stdin=PROMPT.encode())),
        text_of(elutq(novels_2bit, *flags, stdin=PROMPT.encode())),  # no terminal: stdin is the prompt
        text_of(elutq(novels_2bit, *flags, "-f", tmp_path / "prompt.txt")),
        text_of(elutq(novels_2bit, *flags, stdin=f"{PROMPT}\n".encode())),  # the line end of echo
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "stdin is not one"),
        (("--json",), "--json prints"),
        (("--logprobs", 1), "--logprobs reports"),
    ],
)
def test_a_chat_that_cannot_be_had_is_refused_and_not_passed_over(flags, words, novels_2bit):
    result = elutq(novels_2bit, "-cnv", "--raw", "-p", PROMPT, "-n", 5, *flags)
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.startswith(f"elutq: -cnv is a chat at a terminal, but {words}".encode())
    assert result.stderr.count(b"\n") == 1


def test_stop_string(novels_2bit):
    whole = text_of(elutq(novels_2bit, "-p", PROMPT, "-n", 40, "--temp", 0)).rstrip("\n")
    stop = whole[25:29]
    values = json.loads(
        text_of(
            elutq(novels_2bit, "-p", PROMPT, "-n", 40, "--temp", 0, "--stop", "never seen", "--stop", stop, "--json")
        )
    )
    assert values["text"] == whole[: whole.index(stop)]
    assert values["finish_reason"] == "stop"


def test_full_context_ends_the_text_and_says_so(novels_2bit):
    values = json.loads(text_of(elutq(novels_2bit, "-p", PROMPT, "-n", -1, "-c", 16, "--ignore-eos", "--json")))
    assert values["finish_reason"] == "context"
    assert values["ctx_size"] == 16


def test_logprobs(novels_2bit):
    flags = ("-p", PROMPT, "-n", 3, "--temp", 0, "--logprobs", 2)
    values = json.loads(text_of(elutq(novels_2bit, *flags, "--json")))
    assert [entry["token_id"] for entry in values["logprobs"]] == values["tokens"]
    for entry in values["logprobs"]:
        assert entry["logprob"] == entry["alternatives"][0]["logprob"] <= 0
        assert len(entry["alternatives"]) == 2
    result = elutq(novels_2bit, *flags)
    assert text_of(result) == values["text"] + "\n"
    assert len([line for line in result.stderr.decode().splitlines() if line.lstrip()[:1].isdigit()]) == 3


def test_biases_and_stop_tokens(novels_2bit):
    flags = ("-p", PROMPT, "-n", 3, "--temp", 0, "--json")
    tokens = json.loads(text_of(elutq(novels_2bit, *flags)))["tokens"]
    biased = json.loads(text_of(elutq(novels_2bit, *flags, "--logit-bias", f"{tokens[0]}-100")))["tokens"]
    assert tokens[0] not in biased
    ended = json.loads(text_of(elutq(novels_2bit, *flags, "--stop-token-id", tokens[1])))
    assert (ended["tokens"], ended["finish_reason"]) == (tokens[:2], "stop")
    longer = json.loads(text_of(elutq(novels_2bit, *flags, "--stop-token-id", tokens[1], "--min-tokens", 3)))["tokens"]
    assert len(longer) == 3 and tokens[1] not in longer


@pytest.mark.parametrize("bias", ["5", "a+1", "5+", "5+nan", "5 +1", "99999+1"])
def test_a_bias_that_is_none_is_one_line(novels_2bit, bias):
    result = elutq(novels_2bit, "-p", "Once", "--logit-bias", bias)
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)


def test_verbose_shows_the_prompt_as_the_model_gets_it(novels_2bit):
    result = elutq(novels_2bit, "-p", "Once", "-n", 1, "-v", "--chat-template", "<{{ messages[0].content }}>")
    assert result.stderr.decode().startswith("<Once>\n[")


def test_chat_template_from_a_file(novels_2bit, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages[0].role }}:{{ messages[1].content }}")
    flags = ("-p", "Once", "-n", 1, "-v", "-sys", "Be brief.", "--chat-template", tmp_path / "template.jinja")
    assert elutq(novels_2bit, *flags).stderr.decode().startswith("system:Once\n[")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("-sys", "Be brief."), "no chat template"),
        (("--raw", "-sys", "Be brief."), "--raw"),
        (("--raw", "--chat-template", "x{"), "--raw"),
        (("--chat-template", "{% for %}"), "not valid Jinja"),
        (("--chat-template", "{{ raise_exception('only poems') }}"), "only poems"),
        (("--chat-template", "nothing.jinja"), "cannot read nothing.jinja"),
        (("--chat-template", "{{ 1 / 0 }}"), "division by zero"),
        (("--chat-template", "{# nothing #}"), "no tokens"),
    ],
)
def test_templates_that_cannot_be_used(novels_2bit, flags, word):
    result = elutq(novels_2bit, "-p", "Once", *flags)
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.count(b"\n") == 1
    assert word in result.stderr.decode()


def test_output_is_utf8_whatever_the_locale(novels_2bit):
    flags = ("-p", "Caf\u00e9 \u2014 \u65e5\u672c", "-n", 200, "--temp", 3, "--top-k", 0, "--top-p", 1, "--min-p", 0)
    result = elutq(novels_2bit, *flags, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert text_of(result)


def test_reader_that_leaves_ends_it_quietly(novels_2bit):
    command = [ELUTQ, "run", novels_2bit, "-p", PROMPT, "-n", "500", "--ignore-eos"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.wait(timeout=300) != 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(novels_2bit, closed):
    command = f"{ELUTQ} run {novels_2bit} -p Once -n 3 --temp 0 {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, timeout=300)
    assert result.returncode == 0
    assert b"Traceback" not in result.stderr
    assert bool(result.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_closed_stdin_is_an_empty_prompt(novels_2bit):
    result = subprocess.run(["sh", "-c", f"{ELUTQ} run {novels_2bit} <&-"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "prompt is empty" in result.stderr


def test_full_disk_is_one_line(novels_2bit):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        command = [ELUTQ, "run", novels_2bit, "-p", "Once", "-n", "3"]
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=300
        )
    assert result.returncode == 1
    assert result.stderr == "elutq: No space left on device\n"


def test_ctrl_c_ends_the_text_and_still_reports(endless_model):
    command = [ELUTQ, "run", endless_model, "--raw", "-p", PROMPT, "-n", "-1", "--ignore-eos", "-t", "1"]
    environment = os.environ | {"ELUTQ_ISA": "scalar"}
    with started(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        first = os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (first + stdout).decode("utf-8").endswith("\n")
    assert b"generated" in stderr and b"Traceback" not in stderr


def test_a_reader_that_leaves_ends_the_program_quietly(endless_model):
    command = [ELUTQ, "run", endless_model, "--raw", "-p", PROMPT, "-n", "-1", "--ignore-eos"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=300) == 1
    assert stderr == b""


def test_numpy_is_not_loaded_for_help():
    code = "import sys, elutq_cli.app; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_reads_checkpoints_is_not_loaded_to_run_a_model_file(novels_2bit):
    """It takes 10 ms of every start."""
    code = (
        "import sys, elutq_cli.commands.run, elutq_cli.commands.serve\n"
        "from elutq_cli.commands.model_argument import find_model_file\n"
        "from elutq_cli.api import load; load(find_model_file(sys.argv[1], None, False), ctx_size=8).close()\n"
        "print(*sorted({'elutq_formats.checkpoint', 'elutq_formats.gguf_source', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, novels_2bit], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("\n", "")


def test_a_checkpoint_in_the_place_of_a_model_file_is_told_what_to_do(tmp_path):
    (tmp_path / "a" / "folder").mkdir(parents=True)
    command = [ELUTQ, "run", "a/folder", "-p", "x"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "elutq quantize a/folder -o model.gguf" in result.stderr


def test_full_context_is_in_the_statistics(novels_2bit):
    result = elutq(novels_2bit, "-p", PROMPT, "-n", -1, "-c", 16, "--ignore-eos")
    assert b"context 16 tokens, KV cache 0.0 MB, full" in result.stderr


def test_flags_have_the_names_of_other_programs_too(novels_2bit):
    ours = elutq(novels_2bit, "-p", PROMPT, "-n", 6, "--temp", 0)
    assert text_of(elutq(novels_2bit, "-p", PROMPT, "--max-tokens", 6, "--temperature", 0)) == text_of(ours)


def test_seed_minus_one_is_a_new_one_that_is_told(novels_2bit):
    options = (novels_2bit, "-p", PROMPT, "-n", 1, "--seed", -1, "--json")
    first, second = (json.loads(text_of(elutq(*options)))["seed"] for _ in range(2))
    assert first != second


def test_a_schema_or_a_grammar_binds_the_text(novels_2bit, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text('{"enum": [["one", 2]]}')
    grammar.write_text('root ::= "yes" | "no"\n')
    flags = ("-p", PROMPT, "--temp", 1.5)
    assert json.loads(text_of(elutq(novels_2bit, *flags, "--json-schema", schema))) == ["one", 2]
    values = json.loads(text_of(elutq(novels_2bit, *flags, "--grammar", grammar, "--json")))
    assert (values["text"] in ("yes", "no"), values["finish_reason"]) == (True, "stop")


def test_thoughts_have_a_budget(novels_2bit):
    template = "{{ messages[0].content }}<think>{# </think> #}"
    flags = ("-p", PROMPT, "-n", 30, "--temp", 0, "--reasoning-budget", 5)
    assert "</think>" in text_of(elutq(novels_2bit, *flags, "--chat-template", template))
    result = elutq(novels_2bit, *flags)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert b"--reasoning-budget needs a chat template that marks thoughts" in result.stderr


def test_a_wrong_schema_is_told_in_one_line(novels_2bit, tmp_path):
    schema = tmp_path / "schema.json"
    for text, word in (("{", "not JSON"), ('{"items": {"not": {}}}', "(at items)"), ("[]", "cannot be honoured")):
        schema.write_text(text)
        result = elutq(novels_2bit, "-p", PROMPT, "--json-schema", schema)
        assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)
        assert word in result.stderr.decode()
    both = elutq(novels_2bit, "-p", PROMPT, "--json-schema", schema, "--grammar", schema)
    assert both.returncode == 2 and b"give --json-schema or --grammar" in both.stderr
