"""The `elutq` command: one line a subcommand, and the place where errors become one line on stderr."""

import os
import sys

import typer

from elutq_cli.commands.bench import bench_command
from elutq_cli.commands.eval import eval_command
from elutq_cli.commands.import_model import import_command
from elutq_cli.commands.info import info_command
from elutq_cli.commands.quantize import quantize_command
from elutq_cli.commands.run import run_command
from elutq_cli.commands.serve import serve_command
from elutq_cli.commands.write import write_command
from elutq_cli.streams import prepare_streams, shown_line
from elutq_cli.version import __version__
from elutq_formats.errors import ElutqError

app = typer.Typer(
    name="elutq",
    help="Quantize LLaMA-family checkpoints to 2, 3 or 4 bits and run them on a CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("quantize")(quantize_command)
app.command("import")(import_command)
app.command("run")(run_command)
app.command("serve")(serve_command)
app.command("write")(write_command)
app.command("eval")(eval_command)
app.command("info")(info_command)
app.command("bench")(bench_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        # Imported here because they load numpy, which most commands set up first.
        from elutq_cli.commands.runtime import chosen_kernels
        from elutq_cli.machine.processor import platform_name

        print(f"elutq {__version__} ({chosen_kernels()}, {platform_name()})")
        raise typer.Exit


@app.callback()
def elutq(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_show_version,
        is_eager=True,
        help="Print version, kernels and platform.",
    ),
) -> None:
    """Quantize LLaMA-family checkpoints to 2, 3 or 4 bits and run them on a CPU."""


BAD_INPUT, FAILURE = 2, 1


def main() -> None:
    """Run the command line; exit 2 for bad input, 1 for a failure, 130 when interrupted."""
    prepare_streams()
    try:
        app()
    except ElutqError as error:
        _leave(str(error), BAD_INPUT if error.bad_input else FAILURE)
    except BrokenPipeError:
        # The reader of stdout has gone. Python would complain when it flushes stdout at exit: give it somewhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except OSError as error:
        _leave(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), FAILURE)
    except MemoryError as error:
        _leave(f"out of memory{f': {error}' if str(error) else ''}", FAILURE)
    except Exception as error:
        # Imported here because it loads numpy, whose BLAS must not start before a command has set its threads.
        from elutq_native import NativeError

        if not isinstance(error, NativeError):
            raise
        _leave(str(error), BAD_INPUT if error.bad_input else FAILURE)


def _leave(message: str, status: int) -> None:
    print(f"elutq: {shown_line(message)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
