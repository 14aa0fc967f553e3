"""What every test here starts from."""

import pytest

from zcluster import counter


@pytest.fixture(autouse=True)
def no_counters(monkeypatch):
    """No counter is declared yet: other tests of the same process may have imported apps that do."""
    monkeypatch.setattr(counter, "_registry", {})
