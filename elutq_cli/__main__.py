"""`python -m elutq_cli` is the same as `elutq`."""

from elutq_cli.app import main

main()
