"""The command line: parse arguments, call one recipe, set the exit code."""

from transfuse.cli.main import main

__all__ = ["main"]
