"""Fixtures for the tests of the handle and the command line."""

from handle_rig import launch, options, run_dir, zcluster

__all__ = ["launch", "options", "run_dir", "zcluster"]
