"""lm-evaluation-harness asks `elutq serve`, and gets the log-likelihoods that the model has for the same tokens."""

import json
import os
import subprocess
import sys

import pytest
from conftest import NOVELS
from served import DEADLINE, Server

from elutq_cli.generation.sampling import log_probabilities
from elutq_formats.model_file import ModelFile
from elutq_native import Model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'lm-eval[api]'")
pytest.importorskip("transformers", reason="lm-evaluation-harness needs transformers for its tokenizers")

QUESTIONS = [
    {"query": "It was a dark night, and the sea was", "choices": ["calm and cold.", "very", "my dear"], "gold": 0},
    {"query": "My dear Sir, I beg your" + " very kind and good and old" * 30, "choices": ["pardon", "ship"], "gold": 0},
    {"query": "\"Yes,\" said he; \"and the captain", "choices": ["said that he was", "of"], "gold": 1},
]  # fmt: skip
TASK = """
task: local_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
"""


@pytest.fixture(scope="module")
def answers(novels_2bit, tmp_path_factory):
    """What the harness noted of each question: the arguments of its requests and the log-likelihoods that it got."""
    folder = tmp_path_factory.mktemp("harness")
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "local_questions.yaml").write_text(TASK.format(questions=questions))
    server = Server(novels_2bit, "-c", 512)
    model = f"model=novels,base_url={server.address}/completions,tokenizer={NOVELS},num_concurrent=2"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model]
    command += ["--tasks", "local_questions", "--include_path", folder, "--batch_size", "2"]
    command += ["--output_path", folder / "out", "--log_samples"]
    environment = os.environ | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=environment)
        assert run.returncode == 0, run.stderr[-3000:]
    finally:
        assert server.stop()[0] == 0
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def test_log_likelihoods_of_the_harness_are_those_of_the_same_tokens(answers, novels_2bit):
    tokenizer = ModelFile.open(novels_2bit).tokenizer()
    n_compared = 0
    with Model(novels_2bit) as model, model.session(512, 1) as session:
        for answer in answers:
            for request, ((told, _),) in zip(answer["arguments"].values(), answer["resps"], strict=True):
                context, continuation = request["arg_0"], request["arg_1"]
                tokens = tokenizer.encode(context + continuation)
                n_context = len(tokenizer.encode(context))
                session.rewind(0)
                rows = session.eval(tokens, all_logits=True)[n_context - 1 : -1]
                pairs = zip(rows, tokens[n_context:], strict=True)
                expected = sum(log_probabilities(row)[token] for row, token in pairs)
                assert float(told) == pytest.approx(expected, abs=1e-4)
                n_compared += 1
    assert n_compared == sum(len(question["choices"]) for question in QUESTIONS)
