"""Chapters that must run are executed before the pages are read, several at a time.

myst-nb executes a chapter when its page is read, one after another, and a kernel of small networks cannot keep two
cores busy. Here the same client fills the same caches beforehand, so that reading finds them full. What fails is left
to the reading of its page, which runs it again and reports it.
"""

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from myst_nb.core.config import NbParserConfig
from myst_nb.core.execute import create_client
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging as sphinx_logging

log = sphinx_logging.getLogger(__name__)
ON_CPU = ("toy", "rehearsal")  # at larger scales a chapter has the accelerator to itself


class Quiet(logging.LoggerAdapter):
    """Swallows what myst-nb's client says; the page's own reading will say it aloud."""

    def isEnabledFor(self, level):
        """Never."""
        return False


quiet = Quiet(logging.getLogger(f"{__name__}.client"))


def jobs(scale: str) -> int:
    """Chapters executed at a time: the environment's SURVEYLIB_JOBS (default 2), one where an accelerator is shared."""
    value = os.environ.get("SURVEYLIB_JOBS") or "2"
    if not value.isdigit() or value == "0":
        raise ValueError(f"SURVEYLIB_JOBS is {value!r}; it must be a whole number of at least 1")
    return min(int(value), os.cpu_count() or 1) if scale in ON_CPU else 1


@contextmanager
def threads(count: int):
    """Kernels started inside share the cores: each takes `count` threads, unless the environment says how many."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


def execute(path: Path, md_config, nb_config: NbParserConfig) -> dict:
    """Run one chapter, or find its run in the cache of `nb_config`; what the client says of the execution."""
    text = path.read_text(encoding="utf-8")
    reader = create_nb_reader(path, md_config, nb_config, text)
    if reader is None:  # a page without cells
        return {"succeeded": True}
    with create_client(reader.read(text), str(path), nb_config, quiet, reader.read_fmt) as client:
        return client.exec_metadata or {}


def ahead(env, docnames: Iterable[str], config_of: Callable[[str], NbParserConfig]) -> None:
    """Fill the caches of the chapters among `docnames`; config_of: the execution's configuration of a chapter."""
    scale = os.environ.get("SURVEYLIB_SCALE", "toy")
    at_a_time, names = jobs(scale), list(docnames)
    if at_a_time == 1 or len(names) < 2 or env.mystnb_config.execution_mode != "cache":
        return
    log.info(f"executing {len(names)} chapters, {at_a_time} at a time, where no cached run is found")
    with threads((os.cpu_count() or 1) // at_a_time), ThreadPoolExecutor(at_a_time) as pool:
        running = {pool.submit(execute, Path(env.doc2path(n)), env.myst_config, config_of(n)): n for n in names}
        for done in as_completed(running):
            facts = done.result()
            failed = "" if facts.get("succeeded") else ", FAILED"
            log.info(f"{running[done]}: {facts.get('runtime') or 0:.0f} s{failed}")
