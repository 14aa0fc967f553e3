"""The tests of the plugin share the check for processes that are left with the house's."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "house"))
