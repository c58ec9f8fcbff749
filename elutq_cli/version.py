"""The one place that names elutq's version."""

__version__ = "0.1.0"
