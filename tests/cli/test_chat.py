"""Chat at a pseudo-terminal: commands, Ctrl-C, a full context; and the KV cache that a conversation keeps."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE, NOVELS

import elutq
from elutq_cli.generation import ChatTemplate, Conversation, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.context_size import ContextOverflowError
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

ELUTQ = Path(sys.executable).with_name("elutq")
DEADLINE = 300.0
"""Seconds after which a program that says nothing is taken for stuck, however loaded the machine is."""

PATIENCE = 10.0
"""Seconds after which a person presses a key again."""

TRIMMING = CHAT_TEMPLATE.replace("m.content", "m.content | trim | upper")


def checkpoint_with(folder, name, text):
    shutil.copytree(NOVELS, folder)
    (folder / name).write_text(text)
    return folder


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.process_id, self.file = pty.fork()
        if self.process_id == 0:
            os.execve(ELUTQ, [str(ELUTQ), *map(str, arguments)], os.environ | {"TERM": "dumb"} | environment)
        self.raw, self.output = b"", ""
        self.seen = 0

    def expect(self, pattern):
        """Wait for output that was not matched before; return the match."""
        end = time.monotonic() + DEADLINE
        while not (match := re.compile(pattern, re.DOTALL).search(self.output, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} not in {self.output[self.seen :]!r}"
            assert self.read(end - time.monotonic()), f"it left before {pattern!r}: {self.output[self.seen :]!r}"
        self.seen = match.end()
        return match

    def read(self, seconds):
        """Read what there is; return whether the program is still there."""
        if not select.select([self.file], [], [], max(seconds, 0))[0]:
            return True
        try:
            data = os.read(self.file, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self.raw += data
        # Without readline's marks around a line, during which pastes are told from typing; they may come in pieces.
        text = re.sub(rb"\x1b\[\?2004[hl]\r?|\x1b[\[?0-9]*$", b"", self.raw).replace(b"\r\n", b"\n")
        self.output = text.decode("utf-8", errors="ignore")
        return bool(data)

    def send(self, text):
        os.write(self.file, text.encode())

    def say(self, line):
        self.send(line + "\n")

    def interrupt(self):
        """Press Ctrl-C at a prompt; return the exit status.

        Pressed again after a while, as a person would: Python's input() does not notice a signal that comes between
        writing the prompt and waiting for a key.
        """
        self.send("\x03")
        begin = pressed = time.monotonic()
        while self.read(PATIENCE):
            assert time.monotonic() - begin < DEADLINE, "it does not leave"
            if time.monotonic() - pressed > PATIENCE:
                self.send("\x03")
                pressed = time.monotonic()
        return self.status()

    def status(self):
        """Wait for the end; return the exit status."""
        end = time.monotonic() + DEADLINE
        while self.read(end - time.monotonic()):
            assert time.monotonic() < end, "it does not leave"
        status = os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])
        self.process_id = 0
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process_id:
            os.kill(self.process_id, signal.SIGKILL)
            os.waitpid(self.process_id, 0)
        os.close(self.file)


def test_a_conversation(chat_model, tmp_path):
    (tmp_path / "notes.txt").write_text("Notes of a voyage")
    with Terminal("run", chat_model, "-n", 12, "-s", 3) as terminal:
        terminal.expect(r"context 1024 tokens, KV cache 3\.1 MB.*/exit.*/clear.*/regen.*/read.*\n> ")
        terminal.say("How do you do?")
        held = int(terminal.expect(r"12 tokens, [\d.]+/s, context (\d+) of 1024; as long as -n allows\]\n> ")[1])
        terminal.say("And now?")
        assert int(terminal.expect(r"context (\d+) of 1024.*\n> ")[1]) > held + 12
        terminal.say("/regen")
        terminal.expect(r"12 tokens.*\n> ")
        terminal.say("/clear")
        terminal.expect(r"\[cleared\]\n> ")
        terminal.say("/regen")
        terminal.expect(r"no reply yet\]\n> ")
        terminal.say(f"/read {tmp_path / 'notes.txt'}")
        terminal.expect(r"17 characters go before the next message\]\n> ")
        terminal.say("/read nothing.txt")
        terminal.expect(r"cannot read nothing.txt: No such file.*\n> ")
        terminal.say("/read")
        terminal.expect(r"/read FILE\]\n> ")
        terminal.say("/dance")
        terminal.expect(r"unknown command /dance: see /help\]\n> ")
        terminal.say("/help")
        terminal.expect(r"/regen.*\n> ")
        terminal.say("")
        terminal.expect(r"> ")
        terminal.say("one \\")
        terminal.expect(r"\n\. ")
        terminal.say("two \u00e9")
        terminal.expect(r"12 tokens.*\n> ")
        terminal.say("/exit")
        assert terminal.status() == 0
    assert "Traceback" not in terminal.output


def test_what_each_reply_is_made_from_is_shown_on_demand(chat_model):
    with Terminal("run", chat_model, "-n", 5, "-v") as terminal:
        terminal.expect("\n> ")
        terminal.say("Well?")
        terminal.expect(r"\n[^\n]*user:Well\?\n?[^\n]*assistant:\n\[\d+(, \d+)+\]\n.*5 tokens.*\n> ")
        terminal.say("Go on")
        terminal.expect(r"user:Well\?.*assistant:.*user:Go on.*assistant:\n\[\d+(, \d+)+\]\n.*5 tokens.*\n> ")


def test_end_of_input_leaves(chat_model):
    with Terminal("run", chat_model) as terminal:
        terminal.expect("\n> ")
        terminal.send("\x04")
        assert terminal.status() == 0


def test_ctrl_c_stops_a_reply_and_again_leaves(endless_model):
    with Terminal("run", endless_model, "--ignore-eos", "-t", 1, ELUTQ_ISA="scalar") as terminal:
        terminal.expect("\n> ")
        terminal.say("A long story")
        terminal.expect(r"\n[^\n]{20}")  # some of the reply
        terminal.send("\x03")
        terminal.expect(r"; stopped\]\n> ")
        terminal.say("Go on")
        terminal.expect(r"\n[^\n]{10}")
        terminal.send("\x03")
        terminal.expect(r"; stopped\]\n> ")
        assert terminal.interrupt() == 0
    assert "Traceback" not in terminal.output


def test_pasted_lines_are_one_message(chat_model):
    with Terminal("run", chat_model, "-n", 5, TERM="xterm") as terminal:
        terminal.expect("> ")
        terminal.send("\x1b[200~one\ntwo\x1b[201~")
        terminal.expect("one.*two")  # highlighted
        terminal.send("\n")
        terminal.expect(r"5 tokens.*> ")
        terminal.send("\x04")
        assert terminal.status() == 0
    assert terminal.output.count("5 tokens") == 1


def test_what_is_typed_during_a_reply_is_not_shown_in_it(chat_model):
    with Terminal("run", chat_model, "--ignore-eos", "-n", 200, "-t", 1, ELUTQ_ISA="scalar") as terminal:
        terminal.expect("\n> ")
        terminal.say("A long story")
        terminal.expect(r"\n[^\n]{10}")
        terminal.say("/clear")
        reply = terminal.expect(r"(.*)200 tokens[^\n]*\n> /clear\n\[cleared\]")[1]
        assert "/clear" not in reply


def test_full_context_is_told_and_can_be_cleared(chat_model):
    with Terminal("run", chat_model, "-c", 48, "--ignore-eos") as terminal:
        terminal.expect("\n> ")
        terminal.say("A story")
        terminal.expect(r"context 48 of 48; the context is full: /clear .*\n> ")
        terminal.say("Go on")
        terminal.expect(
            r"needs \d+ tokens and the context holds 48: /clear starts anew, and a larger -c holds more\]\n> "
        )
        terminal.say("/clear")
        terminal.expect(r"\[cleared\]\n> ")
        terminal.say("A story")
        terminal.expect(r"context 48 of 48")


def test_first_message_from_the_command_line(chat_model):
    with Terminal("run", chat_model, "-cnv", "-p", "Hello", "-sys", "Be brief.", "-n", 5) as terminal:
        terminal.expect(r"5 tokens.*\n> ")


def test_prompt_at_a_terminal_is_one_shot(chat_model):
    with Terminal("run", chat_model, "-p", "Hello", "-n", 5) as terminal:
        terminal.expect("generated 5 tokens")
        assert terminal.status() == 0
    assert "> " not in terminal.output


def test_model_without_a_template_says_so_instead_of_guessing(novels_2bit):
    with Terminal("run", novels_2bit) as terminal:
        terminal.expect("no chat template: give one with --chat-template, or use --raw for plain text")
        assert terminal.status() == 2


def test_raw_text_goes_on_from_what_is_typed(novels_2bit):
    with Terminal("run", novels_2bit, "--raw", "-n", 8) as terminal:
        terminal.expect("\n> ")
        terminal.say("It was a dark night, and")
        first = int(terminal.expect(r"8 tokens, [\d.]+/s, context (\d+) of 1024.*\n> ")[1])
        terminal.say(" then the sea")
        assert int(terminal.expect(r"8 tokens, [\d.]+/s, context (\d+) of 1024.*\n> ")[1]) > first


def test_no_terminal_no_chat(chat_model):
    result = subprocess.run(
        [ELUTQ, "run", chat_model, "-n", "6", "--temp", "0"], input="Hello", capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    assert "> " not in result.stdout + result.stderr
    assert "/exit" not in result.stderr


# The conversation itself


@pytest.fixture
def model(chat_model):
    with elutq.load(chat_model, ctx_size=512, threads=1) as model:
        yield model


def ask(conversation, text, n_predict=10, **options):
    generation = conversation.ask(text, Sampler(SamplingOptions(temp=0)), TextOptions(n_predict, **options))
    generation.read()
    conversation.keep(generation)
    return generation


def test_a_reply_is_not_computed_again(model):
    conversation = Conversation(model, model.chat_template, "Be brief.")
    first = ask(conversation, "How do you do?")
    held = len(model.tokens)
    assert first.reused_tokens == 0
    second = ask(conversation, "And now?")
    assert second.reused_tokens == held  # all of it: question, reply and all
    assert model.tokenizer.decode(model.tokens[:held], skip_special_tokens=False).endswith(
        model.tokenizer.decode(first.tokens[:-1])
    )


def test_the_prompt_is_what_the_template_makes_of_the_messages(model):
    conversation = Conversation(model, model.chat_template)
    ask(conversation, "How do you do?")
    ask(conversation, "And now?")
    rendered = model.chat_template.render(conversation.messages[:-1])
    held = model.tokenizer.decode(model.tokens, skip_special_tokens=False)
    assert held.startswith(rendered)


def test_a_template_that_changes_replies_is_encoded_afresh(model):
    template = ChatTemplate.for_tokenizer(TRIMMING, model.tokenizer)
    conversation = Conversation(model, template)
    ask(conversation, "How do you do?")
    second = ask(conversation, "And now?")
    assert 0 < second.reused_tokens < second.prompt_tokens
    held = model.tokenizer.decode(model.tokens, skip_special_tokens=False)
    assert held.startswith(template.render(conversation.messages[:-1]))


def test_regeneration_reuses_the_question_and_replaces_the_reply(model):
    conversation = Conversation(model, model.chat_template)
    first = ask(conversation, "How do you do?")
    assert conversation.take_back() == "How do you do?"
    assert conversation.messages == []
    second = ask(conversation, "How do you do?")
    assert second.reused_tokens == first.prompt_tokens - 1
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_clearing_keeps_the_system_prompt_alone(model):
    conversation = Conversation(model, model.chat_template, "Be brief.")
    prompt_tokens = ask(conversation, "How do you do?").prompt_tokens
    ask(conversation, "And now?")
    conversation.clear()
    assert ask(conversation, "How do you do?").prompt_tokens == prompt_tokens


def test_a_reply_cut_by_a_stop_string_is_kept_without_it(model):
    conversation = Conversation(model, model.chat_template)
    whole = ask(conversation, "How do you do?", 20).text
    conversation.take_back()
    model.clear()
    cut = ask(conversation, "How do you do?", 20, stop=(whole[8:12],))
    assert cut.text == whole[: whole.index(whole[8:12])]
    ask(conversation, "And now?")
    held = model.tokenizer.decode(model.tokens, skip_special_tokens=False)
    assert held.startswith(model.chat_template.render(conversation.messages[:-1]))


def test_a_message_too_long_leaves_the_conversation_as_it_was(model):
    conversation = Conversation(model, model.chat_template)
    ask(conversation, "How do you do?")
    messages = list(conversation.messages)
    with pytest.raises(ContextOverflowError) as caught:
        ask(conversation, "word " * 600)
    assert caught.value.ctx_size == 512 < caught.value.n_tokens
    assert conversation.messages == messages


def test_system_prompt_without_template(model):
    with pytest.raises(ElutqError, match="needs a chat template"):
        Conversation(model, None, "Be brief.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chat_template.jinja", CHAT_TEMPLATE),
        ("tokenizer_config.json", json.dumps({"chat_template": CHAT_TEMPLATE})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "x"},
                        {"name": "default", "template": CHAT_TEMPLATE},
                    ]
                }
            ),
        ),
    ],
)
def test_the_file_carries_the_template_of_the_checkpoint(tmp_path, name, text):
    folder = checkpoint_with(tmp_path / "checkpoint", name, text)
    elutq.quantize(folder, tmp_path / "model.gguf", threads=2)
    assert ModelFile.open(tmp_path / "model.gguf").chat_template == CHAT_TEMPLATE
