"""scripts/reloads, in three seconds: no client notices reloads, changes of size, or recycled workers."""

import re

from left_behind import run_clean
from sources import ROOT


def test_no_client_notices_anything(tmp_path):
    """All kinds of clients have asked in both parts, and not one request has failed."""
    words = ("--seconds=3", "--clients=1", "--keep-alive=0.5", "--max-requests=50")
    done = run_clean([ROOT / "scripts" / "reloads.py", *words], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("verdict: no client has noticed anything\n"), done.stdout
    rows = re.findall(
        r"(?m)^  (fresh|keep-alive|keep-alive, idle|16 KiB bodies) +([\d,]+) +[\d,]+ +(\d+) ", done.stdout
    )
    assert len(rows) == 8, done.stdout
    for kind, requests, errors in rows:
        assert requests != "0", kind
        assert errors == "0", kind
    assert re.search(r"(?m)^reloads: [1-9]\d* in ", done.stdout)
    assert re.search(r"(?m)^workers replaced, added and removed: [1-9]\d* in ", done.stdout)
