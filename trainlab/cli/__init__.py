"""The command ``trainlab``; a module for each of its subcommands."""

from trainlab.cli.command import main

__all__ = ["main"]
