// The controls. State lives in one object; `show` puts it on the screen.
(() => {
  const $ = id => document.getElementById(id), m = LIVE.manifest, cells = m.latent.reduce((a, b) => a * b);
  const state = { ask: null, busy: false, again: false, images: null, scores: null, seeds: m.seeds.slice(), places: [0, 1, 2, 3],
    final: null, looked: new Map(), adapter: m.adapters[0], judged: null };
  const tokens = LIVE.tokenizer(m.tokenizers.model), judgeTokens = LIVE.tokenizer(m.tokenizers.verifier);
  const pixels = 3 * m.height * m.width, megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;

  const say = (text, bad = false) => { $("status").textContent = text; $("status").classList.toggle("bad", bad); };
  const strength = () => Number($("strength").value);

  // -- pictures -----------------------------------------------------------------------------------------------------
  const cells4 = [0, 1, 2, 3].map(() => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    canvas.width = m.width;
    canvas.height = m.height;
    canvas.setAttribute("role", "img");
    figure.append(canvas, caption);
    $("pictures").append(figure);
    return { canvas, caption };
  });

  const paint = (canvas, image) => {
    const data = new ImageData(m.width, m.height), size = m.width * m.height;
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) data.data[4 * i + c] = Math.round(255 * image[c * size + i]);
      data.data[4 * i + 3] = 255;
    }
    canvas.width = m.width;  // forgets that it has shown a file, so that it can be read again
    canvas.getContext("2d").putImageData(data, 0, 0);
  };

  const caption = (cell, seed, score, text) => {
    cell.caption.textContent = `seed ${seed}`;
    if (score !== undefined) {
      const b = document.createElement("b");
      b.textContent = score.toFixed(2);
      b.title = `reward by ${m.reward}`;
      cell.caption.append(b);
    }
    cell.canvas.setAttribute("aria-label", `${text}, seed ${seed}`);
  };

  const show = images => cells4.forEach((cell, i) => {
    paint(cell.canvas, images.subarray(i * pixels, (i + 1) * pixels));
    const place = state.places[i];
    caption(cell, state.drawn.seeds[place], state.scores ? state.scores[place] : undefined, state.drawn.text);
  });

  // Before the model is there: the sprite of the adapter, at the nearest strength that was drawn.
  const sprites = {};
  const still = () => {
    const name = state.adapter && state.adapter.name, file = m.stills[name];
    if (!file) return;
    const sprite = sprites[name] = sprites[name] || Object.assign(new Image(), { src: file });
    const draw = () => {
      if (state.ask || state.adapter.name !== name) return;
      const row = m.strengths.reduce((best, s, i) => Math.abs(s - strength()) < Math.abs(m.strengths[best] - strength()) ? i : best, 0);
      cells4.forEach((cell, i) => {
        cell.canvas.getContext("2d").drawImage(sprite, i * m.width, row * m.height, m.width, m.height, 0, 0, m.width, m.height);
        caption(cell, m.seeds[i], undefined, m.prompt);
      });
      say(`“${m.prompt}”, drawn when the book was built, at strength ${m.strengths[row]}.`);
    };
    sprite.complete && sprite.naturalWidth ? draw() : sprite.addEventListener("load", draw, { once: true });
  };

  // -- prompt -------------------------------------------------------------------------------------------------------
  const vocabulary = new Set(m.vocabulary);
  const check = () => {
    const text = $("prompt").value.trim(), strange = (text.toLowerCase().match(/[^\s,.]+/g) || []).filter(w => !vocabulary.has(w));
    let problem = "", fatal = false;
    if (!text) [problem, fatal] = ["Type what to draw, or press a word below.", true];
    else if (tokens.count(text) > tokens.room) {
      [problem, fatal] = [`Too long: this prompt takes ${tokens.count(text)} tokens and the model reads ${tokens.room}. Shorten it.`, true];
    } else if (strange.length) problem = `The model has never read: ${[...new Set(strange)].join(", ")}. It draws something all the same.`;
    $("note").textContent = problem;
    return fatal ? null : text;
  };

  const addWord = word => {
    const field = $("prompt");
    field.value = `${field.value.trim()} ${word}`.trim();
    check();
    field.focus();
  };

  // -- drawing ------------------------------------------------------------------------------------------------------
  const controls = () => {
    $("draw").textContent = state.busy ? "Stop" : "Draw";
    for (const id of ["fresh", "fixed", "search", "step"]) $(id).disabled = state.busy || (id === "step" && !state.images);
  };

  const noiseOf = seeds => {
    const noise = new Float32Array(seeds.length * cells);
    seeds.forEach((seed, i) => noise.set(m.seeds.includes(seed) ? m.noise[m.seeds.indexOf(seed)] : LIVE.normal(seed, cells), i * cells));
    return noise;
  };

  const adapterPieces = async entry => {
    if (!entry || strength() === 0 || entry.loaded) return undefined;
    const pieces = await LIVE.pieces(`adapter-${entry.name}`, entry.blob);
    entry.loaded = true;
    return pieces;
  };

  const judgeOf = async text => {
    const pieces = state.judged ? undefined : await LIVE.pieces("verifier", m.graphs.verifier.blob);
    state.judged = true;  // the worker keeps them
    return { ids: judgeTokens.encode(text), pieces };
  };

  // Draws with the settings as they stand. With `choose`, the best four of all by the reward.
  const draw = async (seeds, choose = false) => {
    const text = check();
    if (!text || !state.ask) return;
    if (state.busy) { state.again = true; state.ask("stop"); return; }
    state.busy = true;
    state.again = false;
    controls();
    say("Drawing.");
    try {
      const entry = state.adapter, steps = Number($("steps").value), now = strength();
      const pieces = await adapterPieces(entry), judge = choose ? await judgeOf(text) : null;
      const answer = await state.ask("draw", { ids: tokens.encode(text), empty: tokens.encode(""), noise: noiseOf(seeds), pieces, judge,
        table: m.tables[steps], guidance: Number($("guidance").value), adapter: entry ? entry.name : null, strength: now });
      if (answer.stopped) say("Stopped.");
      else shown({ text, seeds, steps, answer, choose, strength: now, label: entry ? entry.label : "" });
    } catch (error) { say(error.message, true); }
    state.busy = false;
    controls();
    if (state.again) { state.again = false; draw(state.seeds); }
  };

  const shown = drawn => {
    const { answer, choose, seeds } = drawn, order = seeds.map((_, i) => i);
    if (choose) order.sort((a, b) => answer.scores[b] - answer.scores[a]);
    Object.assign(state, { drawn, places: order.slice(0, 4), scores: answer.scores, looked: new Map() });
    state.images = new Float32Array(4 * pixels);
    state.places.forEach((place, i) => state.images.set(answer.images.subarray(place * pixels, (place + 1) * pixels), i * pixels));
    $("step").max = $("step").value = drawn.steps + 1;
    document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
    atStep();
    const how = drawn.strength === 0 ? "the base model" : `${drawn.label} at strength ${drawn.strength}`;
    const spread = choose ? ` The best four of ${seeds.length} by ${m.reward}; the scores run from ${Math.min(...answer.scores).toFixed(2)} to ${Math.max(...answer.scores).toFixed(2)}.` : "";
    say(`Drawn by ${how}, ${(answer.milliseconds.picture / 1000).toFixed(2)} s a picture.${spread}`);
  };

  const atStep = async () => {
    const step = Number($("step").value), last = state.drawn ? state.drawn.steps + 1 : Number($("step").max);
    $("at").textContent = step >= last ? "picture" : `${step} of ${last - 1}`;
    if (!state.images) return;
    if (step >= last) return show(state.images);
    try {
      const drawn = state.drawn;
      if (!state.looked.has(step)) state.looked.set(step, state.ask("look", { step: step - 1, places: state.places }));
      const { images } = await state.looked.get(step);
      if (drawn === state.drawn && Number($("step").value) === step) show(images);
    } catch (error) { say(error.message, true); }
  };

  // -- the model ----------------------------------------------------------------------------------------------------
  const load = async () => {
    $("start").disabled = true;
    $("bar").hidden = false;
    const began = performance.now();
    try {
      state.ask = await LIVE.connect(m, (share, what) => { $("bar").value = share; $("size").textContent = what || "loading"; },
        (step, of) => { if (state.busy) say(`Step ${step} of ${of}.`); });
      document.body.dataset.seconds = ((performance.now() - began) / 1000).toFixed(2);
      $("load").hidden = true;
      $("more").disabled = false;
      controls();
      await draw(state.seeds);
    } catch (error) {
      $("bar").hidden = true;
      $("size").textContent = "";
      $("start").disabled = false;
      say(error.message, true);
    }
  };

  // -- building the page ----------------------------------------------------------------------------------------------
  const words = () => {
    for (const [kind, list] of Object.entries(m.words)) {
      const group = document.createElement("span");
      group.title = kind;
      for (const word of list) {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: word });
        button.addEventListener("click", () => addWord(word));
        group.append(button);
      }
      $("words").append(group);
    }
    $("examples").append(...m.examples.map(value => Object.assign(document.createElement("option"), { value })));
  };

  const about = () => {
    const a = state.adapter;
    $("about").textContent = a ? `${a.title}: ${a.line} ` : "";
    if (a) {
      const link = Object.assign(document.createElement("a"), { href: `../../chapters/${a.chapter}.html`, target: "_top", textContent: "Its chapter" });
      $("about").append(link, ".");
    }
  };

  const adapters = () => m.adapters.forEach(entry => {
    const label = document.createElement("label"), input = Object.assign(document.createElement("input"), { type: "radio", name: "adapter", value: entry.name, checked: entry === state.adapter });
    input.addEventListener("change", () => { state.adapter = entry; about(); state.ask ? draw(state.seeds) : still(); });
    label.append(input, entry.label);
    if (entry.hacked) label.append(Object.assign(document.createElement("i"), { textContent: "hacked" }));
    $("adapters").append(label);
  });

  const listen = () => {
    $("ask").addEventListener("submit", event => {
      event.preventDefault();
      if (state.busy) state.ask("stop");
      else if (state.ask) draw(state.seeds);
      else if (check() && !$("start").disabled && !$("start").hidden) load();
    });
    $("prompt").addEventListener("input", check);
    $("strength").addEventListener("input", () => { strengthText(); if (!state.ask) still(); });
    $("strength").addEventListener("change", () => { if (state.ask) draw(state.seeds); });
    $("guidance").addEventListener("input", () => { $("weight").textContent = $("guidance").value; });
    $("guidance").addEventListener("change", () => draw(state.seeds));
    $("steps").addEventListener("change", () => draw(state.seeds));
    $("step").addEventListener("input", atStep);
    $("fresh").addEventListener("click", () => { state.seeds = state.seeds.map(() => 4 + Math.floor(Math.random() * 99996)); draw(state.seeds); });
    $("fixed").addEventListener("click", () => { state.seeds = m.seeds.slice(); draw(state.seeds); });
    $("search").addEventListener("click", () => {
      const more = Array.from({ length: Number($("n").value) - 4 }, () => 4 + Math.floor(Math.random() * 99996));
      draw([...state.seeds, ...more], true);
    });
    $("start").addEventListener("click", load);
  };
  const strengthText = () => { $("shown").textContent = `strength ${strength().toFixed(1)}`; };

  const frame = () => {
    const theme = name => { document.documentElement.dataset.theme = name; };
    const dark = matchMedia("(prefers-color-scheme: dark)");
    theme(dark.matches ? "dark" : "light");
    dark.addEventListener("change", () => { if (parent === window) theme(dark.matches ? "dark" : "light"); });
    if (parent === window) { document.documentElement.classList.add("alone"); return; }
    addEventListener("message", ({ data }) => {
      if (!data || data.live !== "theme") return;
      theme(data.theme === "dark" ? "dark" : "light");
      if (CSS.supports("color", data.ground)) document.documentElement.style.setProperty("--ground", data.ground);
    });
    const tell = () => parent.postMessage({ live: "height", height: document.body.scrollHeight + 8 }, "*");
    new ResizeObserver(tell).observe(document.body);
    tell();
  };

  const begin = () => {
    frame();
    $("live").hidden = false;
    const wish = new URLSearchParams(location.search);
    state.adapter = m.adapters.find(a => a.name === wish.get("adapter")) || m.adapters[0];
    $("prompt").value = wish.get("prompt") || m.prompt;
    $("guidance").value = m.guidance;
    $("weight").textContent = m.guidance;
    $("steps").append(...m.steps.map(n => Object.assign(document.createElement("option"), { textContent: n })));
    $("judge").textContent = `Each is scored by ${m.reward}, a learned reward; the best four are shown.`;
    words();
    adapters();
    about();
    strengthText();
    listen();
    const lacks = LIVE.lacks();
    if (m.missing || lacks) {
      $("start").hidden = true;
      for (const part of [$("prompt"), $("draw"), ...$("words").querySelectorAll("button")]) part.disabled = true;
      $("size").textContent = m.missing ? `This copy of the book was built without the model (${m.missing}). The pictures below were drawn when it was built.`
        : `This browser lacks ${lacks}, which drawing needs. The pictures below were drawn when the book was built.`;
    } else {
      const first = Object.values(m.runtime).reduce((n, b) => n + b.packed, 0) + ["text", "network", "decoder"].reduce((n, k) => n + m.graphs[k].blob.packed, 0);
      $("size").textContent = `${megabytes(first)}, and then it runs in this page, without a server.`;
    }
    still();
  };
  begin();
})();
