"""The command line: each verb parses its options, calls a function, and prints the result."""

from torchdoctor.cli.app import main

__all__ = ["main"]
