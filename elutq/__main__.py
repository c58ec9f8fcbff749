"""`python -m elutq` is the same as `elutq`."""

from elutq_cli.app import main

main()
