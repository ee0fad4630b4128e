"""The version, kept apart so that packaging and documentation can read it without torch."""

__version__ = "0.1.0"
