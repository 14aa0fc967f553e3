"""Fixtures for the tests of the handle and the command line."""

from handle_rig import command_line, launch, options, run_dir, talking

__all__ = ["command_line", "launch", "options", "run_dir", "talking"]
