// The annotation widget: shows model.view, sends {do, task, answer, seconds}. Nothing is decided here.
const SLOW = 5000; // ms without an answer of the kernel before the reader is told

function el(tag, attrs = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const button = (text, key, press, attrs = {}) => el("button",
  { type: "button", class: "sv-ann-btn", onclick: press, "aria-keyshortcuts": key.aria, ...attrs },
  el("span", {}, text), ...(key.show ? [el("kbd", { "aria-hidden": "true" }, key.show)] : []));

function picture(ui, place, attrs = {}) {
  const view = ui.view, count = view.images.length;
  const image = el("img", { src: view.images[place], draggable: "false",
    alt: `picture ${place + 1} of ${count} for the prompt: ${view.prompt}`, ...attrs });
  const sharpen = () => image.classList.toggle("sv-ann-pix", image.naturalWidth <= 256);
  image.complete ? sharpen() : image.addEventListener("load", sharpen);
  return image;
}

// Each kind returns {body, actions, keys}: nodes, nodes, and key -> function.
const KINDS = {
  pair(ui) {
    const says = ["first", "second"], sides = ["Left", "Right"], arrows = ["←", "→"];
    const pick = (place) => el("button", { type: "button", class: "sv-ann-pic", onclick: () => ui.answer(says[place]),
      "aria-label": `${sides[place]} picture is better`, "aria-keyshortcuts": `${place + 1} Arrow${sides[place]}` },
      picture(ui, place), el("span", { class: "sv-ann-cap" }, `${sides[place]} `,
        el("kbd", { "aria-hidden": "true" }, arrows[place]), " ", el("kbd", { "aria-hidden": "true" }, place + 1)));
    return {
      body: [el("div", { class: "sv-ann-pics sv-ann-n2" }, pick(0), pick(1))],
      actions: [button("Tie", { show: "↓ 0", aria: "ArrowDown 0" }, () => ui.answer("tie"))],
      keys: { ArrowLeft: () => ui.answer("first"), 1: () => ui.answer("first"), ArrowRight: () => ui.answer("second"),
        2: () => ui.answer("second"), ArrowDown: () => ui.answer("tie"), 0: () => ui.answer("tie") },
    };
  },

  ranking(ui) {
    const count = ui.view.images.length;
    let chosen = [], tied = false; // chosen: groups of places, best first
    const flat = () => chosen.flat(), keys = {};
    const rank = (place) => {
      let before = 0;
      for (const group of chosen) { if (group.includes(place)) return before + 1; before += group.length; }
      return 0;
    };
    const cells = ui.view.images.map((_, place) => {
      const badge = el("b", { class: "sv-ann-rank", "aria-hidden": "true" });
      const cell = el("button", { type: "button", class: "sv-ann-pic", onclick: () => choose(place),
        "aria-keyshortcuts": String(place + 1) }, picture(ui, place), badge,
        el("span", { class: "sv-ann-cap" }, el("kbd", { "aria-hidden": "true" }, place + 1)));
      keys[place + 1] = () => choose(place);
      return { cell, badge };
    });
    const save = button("Save ranking", { show: "Enter", aria: "Enter" }, () => confirm(), { class: "sv-ann-btn sv-ann-main" });
    const tie = button("Same rank", { show: "=", aria: "=" }, () => { tied = chosen.length > 0 && !tied; draw(); });
    const back = button("Last one off", { show: "⌫", aria: "Backspace" }, () => drop());
    function choose(place) {
      if (flat().includes(place)) { chosen = chosen.map((g) => g.filter((p) => p !== place)).filter((g) => g.length); tied = false; }
      else if (tied) { chosen[chosen.length - 1].push(place); tied = false; }
      else chosen.push([place]);
      draw();
    }
    function drop() { const group = chosen[chosen.length - 1]; if (group) { group.pop(); if (!group.length) chosen.pop(); } tied = false; draw(); }
    function confirm() { if (flat().length === count) ui.answer(ui.view.images.map((_, place) => rank(place))); }
    function draw() {
      cells.forEach(({ cell, badge }, place) => {
        const r = rank(place);
        badge.textContent = r || "";
        cell.classList.toggle("sv-ann-on", r > 0);
        cell.setAttribute("aria-label", `Picture ${place + 1}: ${r ? `rank ${r}` : "no rank yet"}`);
      });
      save.disabled = flat().length < count;
      tie.disabled = !chosen.length || flat().length === count;
      back.disabled = !chosen.length;
      tie.setAttribute("aria-pressed", String(tied));
      hint.textContent = flat().length === count ? "Every picture has a rank."
        : tied ? "The next picture gets the same rank as the last." : `Choose number ${flat().length + 1}.`;
    }
    const hint = el("p", { class: "sv-ann-hint" });
    draw();
    return {
      body: [el("div", { class: `sv-ann-pics sv-ann-n${Math.min(count, 4)}` }, ...cells.map((c) => c.cell)), hint],
      actions: [save, tie, back],
      keys: { ...keys, "=": () => { if (!tie.disabled) tie.click(); }, Backspace: drop, Enter: confirm },
    };
  },

  rating(ui) {
    const { values, low, high, step } = ui.view, keys = {};
    const pictures = el("div", { class: "sv-ann-pics sv-ann-n1" }, el("div", { class: "sv-ann-pic" }, picture(ui, 0)));
    if (values.length) {
      const whole = values.every((v) => Number.isInteger(v) && v >= 0 && v <= 9);
      const scale = values.map((value) => {
        if (whole) keys[value] = () => ui.answer(value);
        return button(String(value), { show: "", aria: whole ? String(value) : undefined }, () => ui.answer(value),
          { "aria-label": `${value} on a scale from ${low} to ${high}` });
      });
      return { body: [pictures, el("div", { class: "sv-ann-scale", role: "group", "aria-label": "rating" },
        el("span", { class: "sv-ann-end" }, `${low} is worst`), ...scale, el("span", { class: "sv-ann-end" }, `${high} is best`))], actions: [], keys };
    }
    const shown = el("output", {}, "");
    const slider = el("input", { type: "range", min: low, max: high, step, "aria-label": `rating from ${low} to ${high}`,
      oninput: () => { shown.textContent = slider.value; save.disabled = false; } });
    const save = button("Save rating", { show: "Enter", aria: "Enter" }, () => ui.answer(Number(slider.value)),
      { class: "sv-ann-btn sv-ann-main", disabled: true });
    return { body: [pictures, el("div", { class: "sv-ann-scale" }, el("span", {}, low), slider, el("span", {}, high), shown)],
      actions: [save], keys: { Enter: () => { if (!save.disabled) save.click(); } } };
  },

  binary(ui) {
    return {
      body: [el("div", { class: "sv-ann-pics sv-ann-n1" }, el("div", { class: "sv-ann-pic" }, picture(ui, 0)))],
      actions: [button("Dislike", { show: "← d", aria: "ArrowLeft d" }, () => ui.answer(false)),
        button("Like", { show: "→ l", aria: "ArrowRight l" }, () => ui.answer(true))],
      keys: { ArrowLeft: () => ui.answer(false), d: () => ui.answer(false), ArrowRight: () => ui.answer(true), l: () => ui.answer(true) },
    };
  },

  rich(ui) {
    const { cells, words } = ui.view;
    const maps = { artifact: new Set(), misalignment: new Set() };
    const LABEL = { artifact: "Artifact", misalignment: "Not in the prompt" };
    let brush = "artifact", painting = null, cursor = Math.floor(cells / 2) * (cells + 1);
    const squares = Array.from({ length: cells * cells }, () => el("i"));
    const grid = el("div", { class: "sv-ann-grid", tabindex: "0", role: "application", style: `--cells:${cells}`,
      "aria-label": "Cells of the picture. Arrow keys move, space marks, a and m change the brush." }, ...squares);
    const paint = (index, on) => { maps[brush][on ? "add" : "delete"](index); show(index); };
    const show = (index) => { for (const name in maps) squares[index].classList.toggle(`sv-ann-${name}`, maps[name].has(index)); };
    const at = (event) => {
      const box = grid.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left) / box.width * cells), row = Math.floor((event.clientY - box.top) / box.height * cells);
      return column < 0 || row < 0 || column >= cells || row >= cells ? -1 : row * cells + column;
    };
    grid.addEventListener("pointerdown", (event) => {
      const index = at(event);
      if (index < 0 || event.button) return;
      painting = !maps[brush].has(index);
      grid.setPointerCapture(event.pointerId);
      move(index); paint(index, painting);
    });
    grid.addEventListener("pointermove", (event) => { const index = at(event); if (painting !== null && index >= 0) paint(index, painting); });
    for (const name of ["pointerup", "pointercancel"]) grid.addEventListener(name, () => { painting = null; });
    const move = (to) => { squares[cursor].classList.remove("sv-ann-cursor"); cursor = to; squares[cursor].classList.add("sv-ann-cursor"); };
    move(cursor);
    const step = (dx, dy) => () => {
      const column = Math.min(cells - 1, Math.max(0, cursor % cells + dx)), row = Math.min(cells - 1, Math.max(0, Math.floor(cursor / cells) + dy));
      grid.focus({ preventScroll: true });
      move(row * cells + column);
    };
    const brushes = Object.keys(maps).map((name) => button(LABEL[name], { show: name[0], aria: name[0] }, () => choose(name),
      { class: `sv-ann-btn sv-ann-brush-${name}` }));
    const choose = (name) => { brush = name; brushes.forEach((b, i) => b.setAttribute("aria-pressed", String(Object.keys(maps)[i] === name))); };
    choose(brush);
    const marks = words.map((word) => el("button", { type: "button", class: "sv-ann-word", "aria-pressed": "false",
      onclick: (event) => { const b = event.currentTarget; b.setAttribute("aria-pressed", String(b.getAttribute("aria-pressed") !== "true")); } }, word));
    const save = () => ui.answer({ artifact: [...maps.artifact], misalignment: [...maps.misalignment],
      misaligned: marks.map((b) => b.getAttribute("aria-pressed") === "true") });
    return {
      body: [el("div", { class: "sv-ann-words", role: "group", "aria-label": "Words of the prompt: mark those the picture does not show" }, ...marks),
        el("div", { class: "sv-ann-pics sv-ann-n1" }, el("div", { class: "sv-ann-pic sv-ann-paint" }, picture(ui, 0), grid)),
        el("div", { class: "sv-ann-actions", role: "group", "aria-label": "brush" }, ...brushes)],
      actions: [button("Save marks", { show: "Enter", aria: "Enter" }, save, { class: "sv-ann-btn sv-ann-main" })],
      keys: { a: () => choose("artifact"), m: () => choose("misalignment"), " ": () => paint(cursor, !maps[brush].has(cursor)), Enter: save,
        ArrowLeft: step(-1, 0), ArrowRight: step(1, 0), ArrowUp: step(0, -1), ArrowDown: step(0, 1) },
      ownPrompt: true,
    };
  },
};

function render({ model, el: host }) {
  const root = el("div", { class: "sv-ann", tabindex: "0", role: "region", "aria-label": "Annotation",
    "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": false });
  const live = el("p", { class: "sv-ann-live", role: "status", "aria-live": "polite" });
  const alert = el("p", { class: "sv-ann-error", role: "alert" });
  const inner = el("div");
  root.append(inner, live, alert);
  host.append(root);
  let waiting = null, since = 0, keys = {};

  const send = (message) => {
    if (waiting !== null) return;
    waiting = setTimeout(() => {
      alert.textContent = "The kernel does not reply. The last answer may not be saved. Run the cell again to go on; saved answers are kept.";
      release();
    }, SLOW);
    root.setAttribute("aria-busy", "true");
    model.send(message);
  };
  const release = () => { clearTimeout(waiting); waiting = null; root.removeAttribute("aria-busy"); };
  const ui = {
    view: model.get("view"),
    answer: (answer) => ui.view.task && send({ do: "answer", task: ui.view.task, answer, seconds: (performance.now() - since) / 1000 }),
    undo: () => ui.view.undo && send({ do: "undo" }),
  };

  function head(view) {
    return el("div", { class: "sv-ann-head" },
      el("progress", { max: view.total, value: view.answered + view.skipped, "aria-label": "progress" }),
      el("span", {}, `${view.answered} of ${view.total} answered${view.skipped ? `, ${view.skipped} skipped` : ""}`));
  }
  function draw() {
    const view = ui.view, focused = root.contains(document.activeElement);
    const undo = button("Undo", { show: "u", aria: "u" }, ui.undo, { disabled: !view.undo });
    const parts = [head(view)];
    keys = { u: ui.undo };
    if (view.task) {
      const kind = KINDS[view.kind](ui);
      const skip = button("Skip", { show: "s", aria: "s" }, () => ui.answer("skip"));
      keys = { ...keys, s: () => ui.answer("skip"), ...kind.keys };
      parts.push(el("p", { class: "sv-ann-question" }, view.question));
      if (!kind.ownPrompt) parts.push(el("p", { class: "sv-ann-prompt" }, view.prompt));
      parts.push(...kind.body, el("div", { class: "sv-ann-actions" }, ...kind.actions, skip, undo));
    } else {
      parts.push(el("p", { class: "sv-ann-prompt" }, view.left ? "This session is closed." : "All tasks are done. Thank you."),
        el("div", { class: "sv-ann-actions" }, undo));
    }
    parts.push(el("p", { class: "sv-ann-foot" }, view.expect ? `${view.expect} ` : "", el("span", {}, `Each answer is saved to ${view.file}.`)));
    inner.replaceChildren(...parts);
    live.textContent = view.saved + (view.task ? ` ${view.name} ${view.number} of ${view.total}.` : "");
    alert.textContent = view.error;
    since = performance.now();
    if (focused) root.focus({ preventScroll: true });
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const inControl = event.target.closest("button, input");
    const native = inControl && (key === "Enter" || key === " " || (inControl.matches("input") && key.startsWith("Arrow")));
    const action = native ? null : keys[key];
    if (key !== "Tab") event.stopPropagation(); // the notebook's own keys stay outside
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow") && ui.view.kind === "rich") action();
  });
  const changed = () => { ui.view = model.get("view"); draw(); };
  const replied = (message) => { if (message && message.done) release(); };
  model.on("change:view", changed);
  model.on("msg:custom", replied);
  draw();
  return () => { clearTimeout(waiting); model.off("change:view", changed); model.off("msg:custom", replied); };
}

export default { render };
