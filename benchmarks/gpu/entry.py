"""`run.py` of a bundle: finds the runner and TVM's runtime beside itself. See `--help`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """Runs the bundle that this file lies in."""
    # Before torch is imported: both need typing_extensions, and TVM a recent one.
    sys.path[:0] = [str(FOLDER), str(FOLDER / "runtime")]
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    # It would compile an extension for a torch that it does not know; plain DLPack is enough.
    os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"
    from runner import run  # type: ignore[import-not-found]

    return int(run.main(FOLDER))


if __name__ == "__main__":
    sys.exit(main())
