"""Fixtures of the tests of conformance with Node's cluster."""

import pytest
from conformance_rig import base_folder


@pytest.fixture
def private_base():
    """A base for the run directories of a program that a test runs."""
    with base_folder() as base:
        yield base
