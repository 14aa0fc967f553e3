"""Where the exec'd processes of a cluster begin; the only place that puts bodies together.

`process.spawn` runs `main()` with argv: a title for ps(1), the role, the cluster's name, then the inherited
descriptors, the control socket first.
"""

import importlib
import sys


def main() -> None:
    """Become what argv says."""
    role, _name, *rest = sys.argv[2:]
    resumed = rest.pop().removeprefix("resume=") if rest[-1].startswith("resume=") else ""
    fds = [int(fd) for fd in rest]
    sys.argv[:] = ["zcluster"]  # the app may look: these words are none of its business
    if role == "zygote":
        from zcluster.bodies import worker, zygote

        sys.exit(zygote.main(fds[0], worker.main, resumed))
    if role == "launcher":
        from zcluster import forhandle

        sys.exit(forhandle.main(*fds))
    body = importlib.import_module(f"zcluster.bodies.{role}")
    sys.exit(body.main(*fds))
