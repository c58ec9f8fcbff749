"""Builds the sdist and the wheel from it; installs both in new environments of the lowest and the newest dependencies.

Needs a package index, so it is no test of the suite: `make packages`. The first failure ends it.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_WHEEL_BYTES = 1_400_000
MODEL = ROOT / "tests/data/novels-6m"
EXTRAS = ("--extra", "serve", "--extra", "gguf", "--extra", "grammar")
PYTHONS = range(10, 20)
"""Minor versions of Python 3 that are looked for."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    # isolated, so that what pyproject.toml asks for is all that a build needs; the wheel is built from the sdist
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    check_wheel(wheel, sdist)
    oldest, newest = find_pythons()
    environments = {
        f"{kind}, {name}": make_environment(folder / f"{kind}-{name}", python, package, *resolution)
        for kind, package in (("wheel", wheel), ("sdist", sdist))
        for name, python, resolution in (("lowest", oldest, ("--resolution", "lowest-direct")), ("newest", newest, ()))
    }
    for name, python in environments.items():
        try_out(python, python.parents[1] / "model.gguf")
        print(f"{name}: quantize, run and serve, with {describe(python)}", flush=True)
    print(f"{len(environments)} passed, 0 failed")


def check_wheel(wheel: Path, sdist: Path) -> None:
    assert "-cp310-abi3-" in wheel.name, f"{wheel.name} is of one Python only"
    assert wheel.stat().st_size < MOST_WHEEL_BYTES, f"{wheel.name} has {wheel.stat().st_size} bytes"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run(Path(sys.executable).with_name("abi3audit"), "--strict", "--summary", wheel)
    print(f"{wheel.name}: {wheel.stat().st_size} bytes", flush=True)


def find_pythons() -> tuple[str, str]:
    """Return the oldest and the newest Python that answer and that pyproject.toml allows: on PATH, or of pyenv."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in PYTHONS:
        for python in (f"python3.{minor}", *sorted(map(str, pyenv.glob(f"3.{minor}.*/bin/python")))):
            if (path := shutil.which(python)) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                found[minor] = path
    return found[min(found)], found[max(found)]


def make_environment(folder: Path, python: str, package: Path, *resolution: str) -> Path:
    """Return the Python of a new environment with the package and the dependencies of its core and its extras."""
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", python, folder)
    install = (uv, "pip", "install", "--quiet", "--python", folder / "bin/python")
    run(*install, *resolution, "-r", ROOT / "pyproject.toml", *EXTRAS)
    run(*install, "--no-deps", package)
    return folder / "bin/python"


def try_out(python: Path, model: Path) -> None:
    """Quantize, run and serve as a user would, in another folder than the repository's."""
    elutq = python.with_name("elutq")
    run(elutq, "--version")
    run(python, "-c", "import elutq, gguf, llguidance; elutq.Recipe()")
    run(elutq, "quantize", MODEL, "-o", model, "--json")
    text = run(elutq, "run", model, "-p", "It was a dark night, and", "-n", "8", "--temp", "0")
    command = [elutq, "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment(), cwd="/") as server:
        try:
            address = server.stderr.readline().split()[1].rstrip(",")
            body = {"prompt": "It was a dark night, and", "max_tokens": 8, "temperature": 0}
            request = urllib.request.Request(
                f"{address}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                served = json.load(response)["choices"][0]["text"]
        finally:
            server.terminate()
    assert served == text.rstrip("\n"), f"serve says {served!r}, run says {text!r}"


def describe(python: Path) -> str:
    uv = Path(sys.executable).with_name("uv")
    packages = json.loads(run(uv, "pip", "list", "--quiet", "--python", python, "--format", "json"))
    wanted = ("numpy", "typer", "huggingface-hub", "cffi", "tokenizers", "jinja2", "starlette", "uvicorn")
    named = [f"{entry['name']} {entry['version']}" for entry in packages if entry["name"] in wanted]
    return ", ".join([run(python, "--version").strip(), *named])


def clean_environment() -> dict[str, str]:
    """Return the environment without what would let a package be found elsewhere than where it is installed."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: object, **variables: str) -> str:
    """Run a program outside the repository; return its stdout. What a failed one says is printed."""
    environment = clean_environment() | variables
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd="/")
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
