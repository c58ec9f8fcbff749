"""`elutq` and `python -m elutq_cli`: a Ctrl-C before a command runs, while the commands are loaded, is no traceback."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from elutq_cli import app

        app.main()
    except KeyboardInterrupt:  # in a command it is typer's, or the command's own
        print("elutq: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
