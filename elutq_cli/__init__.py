"""The command line of elutq, and the pipeline behind it. The Python interface is the package ``elutq``."""
