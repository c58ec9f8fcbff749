"""`elutq quantize org/name --gguf-file FILE`, against a stand-in for the hub on loopback."""

import json
from pathlib import Path

import pytest
import typer
from conftest import DATA, GOLDEN
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from hub_server import COMMIT, serving, use_here
from typer.testing import CliRunner

import elutq
from elutq_cli import hub_headers
from elutq_cli.commands.eval import eval_command
from elutq_cli.commands.quantize import quantize_command
from elutq_cli.hub_sources import find_checkpoint, open_headers
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source

LLAMA = GOLDEN / "llama2-gqa-sharded"
TINY = Path("someone/tiny")
PARTS = [f"split/tiny-{part:05}-of-00003.gguf" for part in (1, 2, 3)]

app = typer.Typer()
app.command("eval")(eval_command)
app.command("quantize")(quantize_command)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    quantized = describe(LLAMA).quantized(GGMLQuantizationType.Q8_0)
    whole = {"tiny-Q8_0.gguf": quantized.write(folder / "a"), "tiny-F32.gguf": describe(LLAMA).write(folder / "b")}
    parts = dict(zip(PARTS, quantized.write_parts(folder, "tiny", 3), strict=True))
    return {name: path.read_bytes() for name, path in (whole | parts).items()} | {"README.md": b"# Tiny\n"}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    with serving(dict(files)) as server:
        use_here(server, tmp_path, monkeypatch)
        yield server


def refused(message, **options):
    with pytest.raises(ElutqError, match=message) as caught:
        open_headers(TINY, **options)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_downloaded_when_its_header_has_been_checked(hub, tmp_path):
    seen = []
    place = find_checkpoint(TINY, check=lambda source: seen.append((source, hub.downloads())), gguf_file="q8_0")
    (source, before), *_ = seen
    assert before == ["README.md"]
    assert hub.downloads() == ["README.md", "tiny-Q8_0.gguf"]
    assert (place.name, place.parent.name) == ("tiny-Q8_0.gguf", COMMIT)
    with open_source(place) as there:
        assert (there.config, there.names, there.tokenizer_json) == (source.config, source.names, source.tokenizer_json)
    hub.requested.clear()
    assert find_checkpoint(TINY, gguf_file="tiny-Q8_0.gguf") == place
    assert find_checkpoint(Path(f"{TINY}:tiny-Q8_0.gguf")) == place
    assert hub.downloads() == []
    hub.requested.clear()
    assert find_checkpoint(TINY, offline=True, gguf_file="tiny-Q8_0.gguf") == place
    assert hub.requested == []


def test_all_parts_of_a_split_file_come(hub):
    place = find_checkpoint(TINY, gguf_file="split/")
    assert sorted(hub.downloads()) == sorted(["README.md", *(Path(part).name for part in PARTS)])
    with open_source(place) as source:
        assert len(source.weight_files()) == 3


def test_a_long_header_is_asked_for_until_it_is_there(hub, monkeypatch):
    monkeypatch.setattr(hub_headers, "HEADER_BYTES", 100)
    with open_headers(TINY, gguf_file="Q8_0") as source:
        assert source.config.vocab_size == 128
        assert source.path == TINY / "tiny-Q8_0.gguf"
    assert hub.downloads() == ["README.md"]
    assert hub.headers_read().count("tiny-Q8_0.gguf") > 2


def test_a_file_that_cannot_be_used_is_not_downloaded(hub, tmp_path):
    described = describe(LLAMA)
    described.metadata["llama.expert_count"] = 8
    hub.files["experts.gguf"] = described.write(tmp_path / "x").read_bytes()
    hub.files["cut.gguf"] = hub.files["tiny-Q8_0.gguf"][:-64]
    hub.files["text.gguf"] = b"some text"
    del hub.files[PARTS[1]]
    refused(r"^someone/tiny/experts.gguf is damaged: none of the layers has any of the 8 experts", gguf_file="experts")
    refused(r"^someone/tiny/cut.gguf is truncated or damaged", gguf_file="cut")
    refused(r"^someone/tiny/text.gguf is not a GGUF file", gguf_file="text")
    refused(r"^someone/tiny is incomplete: it has no 'split/tiny-00002-of-00003.gguf', a part of", gguf_file="split")
    refused(r"has \d GGUF files \('tiny-Q8_0.gguf', .*\): choose one, as someone/tiny:FILE", gguf_file="tiny")
    refused(r"has no GGUF file 'q9': it has 'tiny-Q8_0.gguf'", gguf_file="q9")
    refused(r"is GGUF: say which .--gguf-file")
    refused(r"has no GGUF file 'Q8_0' in the cache|has no GGUF file", gguf_file="Q8_0", offline=True)
    assert set(hub.downloads()) <= {"README.md"}


def test_a_model_file_of_elutq_is_not_quantized_again(hub, novels_2bit):
    hub.files["ours.gguf"] = novels_2bit.read_bytes()
    refused(r"^someone/tiny/ours.gguf: it is a model file of elutq already", gguf_file="ours")


def test_the_command_and_the_api_take_it(hub, tmp_path):
    command = ["quantize", str(TINY), "--gguf-file", "Q8_0", "--group-size", "32"]
    result = CliRunner().invoke(app, [*command, "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["output_bytes"] > 0
    assert hub.downloads() == ["README.md"]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "a.gguf")], catch_exceptions=False)
    assert result.exit_code == 0
    elutq.quantize(TINY, tmp_path / "b.gguf", elutq.Recipe(group_size=32), gguf_file="Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    provenance = ModelFile.open(tmp_path / "a.gguf").provenance
    assert (provenance["source"], provenance["source_revision"]) == ("someone/tiny:tiny-Q8_0.gguf", COMMIT)
    arguments = ["eval", f"{TINY}:Q8_0", "-f", str(DATA / "sampled.txt"), "-c", "16", "--chunks", "1", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["ppl"] > 1


def test_a_folder_may_hold_the_file(files, tmp_path):
    (tmp_path / "tiny-F32.gguf").write_bytes(files["tiny-F32.gguf"])
    assert find_checkpoint(tmp_path, gguf_file="f32") == tmp_path / "tiny-F32.gguf"
    with pytest.raises(ElutqError, match=r"has no GGUF file 'q4': it has 'tiny-F32.gguf'"):
        find_checkpoint(tmp_path, gguf_file="q4")
    with pytest.raises(ElutqError, match="is neither a repository's name nor a folder: leave out the GGUF file"):
        find_checkpoint(tmp_path / "tiny-F32.gguf", gguf_file="f32")
    with pytest.raises(ElutqError, match="names a file already: leave out the other one"):
        find_checkpoint(Path("someone/tiny:Q8_0"), gguf_file="f32")
