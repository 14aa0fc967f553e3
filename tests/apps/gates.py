"""Files by which a test tells an app to go on, in whichever process it waits; $FOLDER names where they lie."""

import os
import threading
import time
from pathlib import Path

FOLDER = Path(os.environ["FOLDER"])
LIMIT_S = 10.0  # a gate that nobody opens ends in a traceback before the cluster is given up for hung


def pass_gate(name):
    """Wait until the file "gate-NAME" exists."""
    gate = FOLDER / f"gate-{name}"
    deadline = time.monotonic() + LIMIT_S
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened {gate}")
        threading.Event().wait(0.005)


def leave_note(name, text):
    """Write the file "note-NAME", whole or not at all."""
    draft = FOLDER / f"draft-{name}"
    draft.write_text(text)
    draft.rename(FOLDER / f"note-{name}")
