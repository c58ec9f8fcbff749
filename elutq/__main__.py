"""`python -m elutq` is the same as `elutq`."""

from elutq_cli.__main__ import main

main()
