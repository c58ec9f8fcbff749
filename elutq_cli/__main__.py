"""`elutq` and `python -m elutq_cli`: a Ctrl-C while the commands are loaded ends it as one later does."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from elutq_cli import app
    except KeyboardInterrupt:
        print("elutq: interrupted", file=sys.stderr)
        sys.exit(130)
    app.main()


if __name__ == "__main__":
    main()
