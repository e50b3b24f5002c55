"""onnxruntime-web from npm, once, into book/live/runtime (never committed)."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import vendor

PACKAGE = "onnxruntime-web@1.22.0"  # 1.30.0 does the same and is 0.8 MB larger
FOLDER = Path(__file__).resolve().parent / "runtime"
# The page takes the first three; the tests run the same wasm in node through the last.
FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.node.min.js")


class RuntimeMissing(RuntimeError):
    """The package cannot be had; the message says why."""


def runtime() -> Path:
    """The folder with `FILES`, fetched where it is not there in this version.

    Raises:
        RuntimeMissing: no npm, no network.
    """
    version = FOLDER / "version.json"
    if version.is_file() and json.loads(version.read_text()) == PACKAGE:
        return FOLDER
    try:
        with tempfile.TemporaryDirectory() as work:
            package = vendor.pack(PACKAGE, Path(work))
            shutil.rmtree(FOLDER, ignore_errors=True)
            for name in FILES:
                vendor.copy(package / "dist" / name, FOLDER / name)
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise RuntimeMissing(f"{PACKAGE} is not available ({reason[-1] if reason else error})") from error
    version.write_text(json.dumps(PACKAGE))
    return FOLDER
