"""The Sphinx extension of the book: execution cache, front-end assets, launch buttons, pages made from the catalog.

The cache of a chapter lives in ``_build/.jupyter_cache/<chapter>/<scale>-<fingerprint>``: the scale of the run and what
the chapter really imports (`import_graph`) decide whether its cells run again.
"""

import os
import shutil
from pathlib import Path

import execute_ahead
import survey_pages
from import_graph import fingerprint
from sphinx.util import logging

log = logging.getLogger(__name__)
KEEP = 4  # cached executions kept of a chapter
CDN_MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-mml-chtml.js"


def is_chapter(docname: str) -> bool:
    """Pages under chapters/ are executed."""
    return docname.startswith("chapters/")


def key(app, docname: str) -> str:
    """Scale and fingerprint of a chapter as they are now."""
    scale = os.environ.get("SURVEYLIB_SCALE", "toy")
    return f"{scale}-{fingerprint(Path(app.env.doc2path(docname)), Path(app.srcdir))}"


def local_assets(app, config) -> None:
    """Point MathJax and the widget manager at the vendored files, if they are there."""
    vendor = Path(app.srcdir) / "book" / "_static" / "vendor"
    if (vendor / "versions.json").exists():
        config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"
        config.nb_ipywidgets_js = {"vendor/require.min.js": {}, "vendor/require-paths.js": {},
                                   "vendor/embed-amd.js": {}}
    else:
        config.mathjax_path = CDN_MATHJAX
        log.info("survey_book: no local front-end packages; formulas and widgets link to public CDNs")
    theme = config.html_theme_options
    if not theme.get("repository_url"):  # the theme's launch buttons need it
        for key in ("repository_url", "repository_branch", "launch_buttons"):
            theme.pop(key, None)


def patience(app, config) -> None:
    """Cells that train at full scale may take as long as they need."""
    if os.environ.get("SURVEYLIB_SCALE", "toy") not in execute_ahead.ON_CPU:
        config.nb_execution_timeout = -1


def outdated(app, env, added, changed, removed) -> list[str]:
    """Chapters whose key changed or whose execution failed, and pages made from data that changed."""
    known = getattr(env, "survey_keys", {})
    now = {doc: key(app, doc) for doc in env.found_docs if is_chapter(doc)}
    again = [doc for doc in now if doc in known and known[doc] != now[doc]]
    again += [doc for doc in now if env.metadata.get(doc) is not None and failed(env, doc)]
    env.survey_keys = now
    state = survey_pages.state(app)
    if getattr(env, "survey_state", None) != state:
        again += sorted(filter(survey_pages.is_made, env.found_docs))
    env.survey_state = state
    return sorted(set(again))


def failed(env, docname: str) -> bool:
    """Whether the last execution of a chapter ended in an error."""
    data = getattr(env, "nb_metadata", {}).get(docname, {}).get("exec_data")
    return bool(data) and not data.get("succeeded", True)


def cached_config(app, docname: str):
    """The execution's configuration of a chapter: its own cache folder, the oldest beyond `KEEP` removed."""
    folder = Path(app.outdir).parent / ".jupyter_cache" / docname
    mine = folder / key(app, docname)
    mine.mkdir(parents=True, exist_ok=True)
    os.utime(mine)
    for old in sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return app.env.mystnb_config.copy(execution_cache_path=str(mine))


def before_all(app, env, docnames: list[str]) -> None:
    """Execute the chapters about to be read, several at a time."""
    execute_ahead.ahead(env, filter(is_chapter, docnames), lambda docname: cached_config(app, docname))


def before_read(app, docname: str, source: list[str]) -> None:
    """Give the chapter about to be read its own cache folder; fill pages made from data."""
    if is_chapter(docname):
        app.env.mystnb_config = cached_config(app, docname)
    source[0] = survey_pages.fill(app, docname, source[0])


def rewrite_all(app, env) -> list[str]:
    """Every page holds the table of contents: when that changed, all are written again (none is read again)."""
    toc = Path(app.srcdir, "book/_toc.yml").read_text() + repr(sorted((d, t.astext()) for d, t in env.titles.items()))
    if getattr(env, "survey_toc", toc) == toc:
        env.survey_toc = toc
        return []
    env.survey_toc = toc
    return sorted(env.found_docs)


def download_ipynb(app, page, template, context, doctree) -> None:
    """Offer a chapter as .ipynb, with or without launch buttons (the theme does it only with them)."""
    notebook = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if is_chapter(page) and notebook.exists():
        target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(notebook, target)
        context["ipynb_source"] = f"{page}.ipynb"


def remove_stale(app, exception) -> None:
    """Delete pages of chapters that are gone; Sphinx leaves them where links and search can still find them."""
    if exception is None:
        for page in Path(app.outdir, "chapters").glob("*/*.html"):
            if str(page.relative_to(app.outdir).with_suffix("")) not in app.env.found_docs:
                page.unlink()


def one_thebe_url(app, page, template, context, doctree) -> None:
    """sphinx-thebe declares THEBE_JS_URL twice, which is an error in the browser's console: keep the first."""
    seen = set()
    for file in list(context.get("script_files", [])):
        body = getattr(file, "attributes", {}).get("body") or ""
        if "THEBE_JS_URL" in body:
            if body in seen:
                context["script_files"].remove(file)
            seen.add(body)


def colab_ipynb(app, page, template, context, doctree) -> None:
    """Colab opens .ipynb only: its button points to the branch "notebooks", where they are published."""

    def walk(item):
        if isinstance(item, dict):
            url = item.get("url")
            if isinstance(url, str) and "colab.research" in url and url.endswith(".md"):
                item["url"] = url.replace("/blob/main/", "/blob/notebooks/")[: -len(".md")] + ".ipynb"
            item = list(item.values())
        if isinstance(item, list):
            for inner in item:
                walk(inner)

    walk(context.get("header_buttons", []))


def setup(app):
    """Entry point of Sphinx."""
    app.connect("config-inited", local_assets, priority=900)
    app.connect("config-inited", patience)
    app.connect("env-get-outdated", outdated)
    app.connect("env-before-read-docs", before_all)
    app.connect("source-read", before_read)
    app.connect("env-updated", rewrite_all)
    app.connect("html-page-context", download_ipynb, priority=100)
    app.connect("html-page-context", one_thebe_url, priority=900)
    app.connect("html-page-context", colab_ipynb, priority=950)
    app.connect("build-finished", remove_stale)
    survey_pages.setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
