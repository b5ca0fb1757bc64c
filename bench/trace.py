"""Count what a reader of a run meets: functions that it enters, files, changes of file, lines.

    python -m bench.trace --mode LoRA --gpt_variant nano --max_steps 3 --out_dir DIR

It runs run.py with these options in this process, and lists the project's files that the run has
loaded, each with its lines. A function counts where it is first entered. Bodies of modules and of
classes, lambdas and comprehensions do not count.
"""

import argparse
import importlib
import sys
import threading
from inspect import CO_OPTIMIZED
from itertools import pairwise
from pathlib import Path
from types import FrameType

from support import PROJECT


def main() -> int:
    """Run the command and print what it met; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], usage="python -m bench.trace OPTIONS OF run.py"
    )
    _, options = parser.parse_known_args()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("bench", "support")]:
        del sys.modules[name]  # what only this script has loaded is not the run's
    met: dict[tuple[str, str], None] = {}  # (file, function), in the order of the first entries

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and is_function and is_ours(code.co_filename):
            met.setdefault((code.co_filename, code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    status = importlib.import_module("run").main(options)
    sys.setprofile(None)
    entered = [file for file, _ in met]
    loaded = {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}
    lines = {file: len(Path(file).read_text().splitlines()) for file in loaded if is_ours(file)}
    for file, number in sorted(lines.items()):
        mark = "" if file in entered else "  (no function is entered)"
        print(f"{number:6} {Path(file).relative_to(PROJECT)}{mark}")
    changes = sum(one != other for one, other in pairwise(entered))
    print(f"{len(met)} functions in {len(set(entered))} files, {changes} changes of file;", end=" ")
    print(f"{len(lines)} files loaded, {sum(lines.values()):,} lines")
    return status


def is_ours(file: str) -> bool:
    """Return whether a file is one of the project's that run."""
    return Path(file).parent == PROJECT or Path(file).is_relative_to(PROJECT / "support")


if __name__ == "__main__":
    sys.exit(main())
