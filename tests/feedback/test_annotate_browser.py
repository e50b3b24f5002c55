"""The widget in JupyterLab, driven by keys, mouse and touch in a real browser."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from surveylib.feedback.records import read_records

CELL = """
import torch
from surveylib.feedback.annotate import Task, annotate

def picture(hue, where):
    image = torch.full((3, 64, 64), 0.93)
    image[:, 20:44, where:where + 24] = torch.tensor(hue)[:, None, None]
    return image

RED, BLUE = (0.85, 0.2, 0.2), (0.2, 0.35, 0.85)
tasks = [Task.pair(f"a red square, number {n}", picture(RED, 2 + 2 * n), picture(BLUE, 2 + 2 * n)) for n in range(6)]
places = [picture(RED, 8 * n) for n in range(4)]
tasks += [Task.ranking("a red square on the left", places), Task.rating("a red square", places[1]),
          Task.binary("a blue square", places[2]), Task.rich("a large blue square", places[2], cells=8)]
widget = annotate(tasks, "answers.jsonl", annotator="reader", seed=1, expect={10: 0.62, 100: 0.79},
                  expect_note="made-up numbers of a test")
widget
"""
SETTINGS = {  # no news, no questions: nothing may cover the page
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
}
THEME = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_settings(folder: Path, theme: str = "JupyterLab Light") -> None:
    for name, values in {**SETTINGS, THEME: {"theme": theme}}.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))


class Lab:
    """A JupyterLab of its own in a temporary folder, with one notebook in it."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder / "work", free_port()
        self.settings = folder / "lab" / "user-settings"
        self.folder.mkdir()
        write_settings(self.settings)
        self.write_notebook()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SURVEYLIB_STILL": "0",
                       "IPYTHONDIR": str(folder / "ipython"),
                       **{f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
                       "JUPYTERLAB_SETTINGS_DIR": str(self.settings), "JUPYTER_PREFER_ENV_PATH": "1",
                       "JUPYTERLAB_WORKSPACES_DIR": str(folder / "lab" / "workspaces")}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={self.port}", "--ip=127.0.0.1",
                   "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=", "--allow-root",
                   "--ServerApp.disable_check_xsrf=True",  # kernels are ended by plain requests
                   f"--ServerApp.root_dir={self.folder}"]
        self.log = open(folder / "lab.log", "w")  # noqa: SIM115 (closed in close)
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log,
                                        start_new_session=True)

    def write_notebook(self) -> None:
        """The notebook as new, without outputs."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.strip())], metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
        nbformat.write(notebook, self.folder / "annotate.ipynb")

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read() or b"null")

    def wait(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                return self.ask("status")
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    log = Path(self.log.name).read_text()[-2000:]
                    raise RuntimeError(f"JupyterLab did not start on port {self.port}:\n{log}") from None
                time.sleep(0.2)

    def close(self) -> None:
        """Ends the server and its kernels: all are in the process group it was started in, kernels shut down first."""
        try:
            for kernel in self.ask("kernels"):
                self.ask(f"kernels/{kernel['id']}", "DELETE")
        except OSError:
            pass
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


@pytest.fixture
def lab(tmp_path, browser):
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    running = Lab(tmp_path)
    try:
        running.wait()
        yield running
    finally:
        running.close()


def kernel_is_ready(lab) -> bool:
    """The notebook's kernel has started and a page is connected to it. Its state is "idle" from the first answer on."""
    return any(kernel["connections"] > 0 and kernel["execution_state"] == "idle" for kernel in lab.ask("kernels"))


def close_dialogs(page) -> list[str]:
    """What JupyterLab asked in between (a kernel that is slow to start, one that ended), each answered as proposed."""
    asked = []
    while page.locator(".jp-Dialog").count():
        dialog = page.locator(".jp-Dialog").last
        asked.append(dialog.inner_text())
        dialog.locator(".jp-mod-accept").first.click()
        dialog.wait_for(state="detached", timeout=10_000)
    return asked


def run_cell(lab, page) -> None:
    """Run the first cell. Before the kernel is connected JupyterLab passes a run over or asks for a kernel: wait for it
    and, where a run was passed over all the same, try again."""
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    asked = []
    for _ in range(90):
        asked += close_dialogs(page)
        if kernel_is_ready(lab):
            page.locator(".jp-CodeCell .jp-InputArea-editor").first.focus()  # not a click, which a late dialog takes
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(1000)
        if prompt.inner_text().strip() != "[ ]:":
            return
    raise RuntimeError(f"the kernel did not take the cell; kernels: {lab.ask('kernels')}; dialogs: {asked}")


@pytest.fixture
def visitor(lab, browser):
    """Open the notebook: (page, the widget). Further options are those of a browser context."""
    contexts = []

    def open_notebook(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        lab.write_notebook()
        page.goto(f"http://127.0.0.1:{lab.port}/doc/tree/annotate.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        run_cell(lab, page)
        widget = page.locator(".jp-OutputArea .sv-ann[role=region]")
        widget.wait_for()
        return page, widget

    yield open_notebook
    for context in contexts:
        context.close()


def answered(widget, count: int) -> None:
    widget.locator(".sv-ann-head", has_text=f"{count} of 10 answered").wait_for()


def picture_to(path: Path, name: str, widget) -> Path:
    """A picture of the widget as the reader sees it, into the test's folder."""
    widget.screenshot(path=path / f"{name}.png")
    return path / f"{name}.png"


def answer_pairs(page, widget) -> None:
    """Three by keys (one taken back), one by mouse, one skipped, one a tie."""
    widget.focus()
    for count, key in enumerate(("ArrowLeft", "2", "0"), start=1):
        page.keyboard.press(key)
        answered(widget, count)
    page.keyboard.press("u")
    answered(widget, 2)
    page.keyboard.press("ArrowDown")
    answered(widget, 3)
    widget.get_by_role("button", name="Right picture is better").click()
    answered(widget, 4)
    page.keyboard.press("s")
    widget.locator(".sv-ann-head", has_text="1 skipped").wait_for()


def answer_the_rest(page, widget, tmp_path: Path) -> None:
    """The sixth pair by touch, then a ranking, a rating, a like and marks."""
    widget.get_by_role("button", name="Left picture is better").tap()
    answered(widget, 5)
    picture_to(tmp_path, "ranking", widget)
    widget.focus()
    for key in ("2", "4", "=", "1", "3"):
        page.keyboard.press(key)
    picture_to(tmp_path, "ranked", widget)
    page.keyboard.press("Enter")
    answered(widget, 6)
    picture_to(tmp_path, "rating", widget)
    widget.get_by_role("button", name="4 on a scale from 1 to 5").tap()
    answered(widget, 7)
    picture_to(tmp_path, "binary", widget)
    page.keyboard.press("ArrowRight")
    answered(widget, 8)
    widget.get_by_role("button", name="blue", exact=True).click()
    box = widget.locator(".sv-ann-grid").bounding_box()
    cell = box["width"] / 8
    page.mouse.move(box["x"] + 1.5 * cell, box["y"] + 2.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 2.5 * cell, steps=6)
    page.mouse.up()
    widget.locator(".sv-ann-grid").focus()
    for key in ("m", "ArrowDown", " "):
        page.keyboard.press(key)
    picture_to(tmp_path, "marks", widget)
    widget.get_by_role("button", name="Save marks").click()
    widget.get_by_text("All tasks are done").wait_for()


@pytest.mark.browser
def test_be_the_annotator(lab, visitor, tmp_path):
    page, widget = visitor()
    answered(widget, 0)
    assert widget.locator("img.sv-ann-pix").count() == 2
    assert widget.locator("img").first.bounding_box()["width"] > 250
    picture_to(tmp_path, "light", widget)
    answer_pairs(page, widget)
    assert page.locator(".jp-Dialog").count() == page.locator(".jp-MarkdownCell").count() == 0  # JupyterLab took no key
    page.context.close()

    path = lab.folder / "answers.jsonl"
    first, second, tie, right = read_records(path)
    assert [r.extra["answer"] for r in (first, second, tie, right)] == ["first", "second", "tie", "second"]
    for record, left_is_best in ((first, True), (second, False), (right, False)):
        assert record.preference == float((record.extra["order"][0] == 0) == left_is_best)
    assert tie.preference == 0.5 and all(r.annotator == "reader" and r.extra["seconds"] > 0 for r in (first, tie))

    (kernel,) = lab.ask("kernels")
    lab.ask(f"kernels/{kernel['id']}", "DELETE")  # as when the machine was turned off in between
    write_settings(lab.settings, theme="JupyterLab Dark")
    page, widget = visitor(viewport={"width": 390, "height": 844}, has_touch=True)
    widget.locator(".sv-ann-head", has_text="4 of 10 answered, 1 skipped").wait_for()
    assert page.evaluate("document.body.dataset.jpThemeLight") == "false"
    inside = widget.evaluate("node => node.scrollWidth - node.clientWidth")
    assert inside <= 0
    picture_to(tmp_path, "dark_phone", widget)
    answer_the_rest(page, widget, tmp_path)

    *_, ranking, rating, binary, rich = read_records(path)
    shown = [ranking.ranks[i] for i in ranking.extra["order"]]
    assert shown == [2, 1, 4, 2] and rating.rating == 4 and binary.liked is True
    assert rich.misaligned == (False, False, True, False)
    assert [tuple(i) for i in zip(*rich.heatmaps["artifact"].nonzero())] == [(2, 1), (2, 2), (2, 3)]
    assert rich.heatmaps["misalignment"].sum() == 1
    assert len(read_records(path)) == 9
