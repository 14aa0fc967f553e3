"""Histories: what happened, line by line, and everything the fleet did about it (see histories/*.txt)."""

import pytest
from fleet_stories import played, stories

STORIES = stories()


@pytest.mark.parametrize("title", STORIES)
def test_history(title):
    """The fleet answers each event of the history with exactly the commands written below it."""
    body = STORIES[title].rstrip("\n")
    assert played(body) == body


def test_there_are_histories():
    """The files are found: a suite of nothing would pass."""
    assert len(STORIES) > 80
