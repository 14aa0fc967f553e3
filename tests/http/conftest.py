"""Fixtures for the tests of the HTTP engine."""

from access_rig import log_records, make_log
from crew_rig import no_more_threads

__all__ = ["log_records", "make_log", "no_more_threads"]
