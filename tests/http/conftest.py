"""Fixtures for the tests of the HTTP engine."""

from access_rig import log_records, make_log

__all__ = ["log_records", "make_log"]
