"""`python -m jepa_fast.accelerate SCRIPT [ARGS...]`: run an unmodified training script on the ops of jepa_fast."""

import runpy
import sys
from pathlib import Path

USAGE = "usage: python -m jepa_fast.accelerate SCRIPT [ARGS...], or -m MODULE [ARGS...] in place of SCRIPT"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] == "-m" and len(arguments) < 2):
        print(USAGE, file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from .session import running

    with running():
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, "")
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
