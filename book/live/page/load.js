// Loading: pieces by script tags (a page opened from disk may not fetch), the worker, and what to say when it fails.
LIVE.lacks = () => {
  const module = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
  if (typeof WebAssembly !== "object") return "WebAssembly";
  if (!WebAssembly.validate(module)) return "WebAssembly SIMD";
  if (typeof DecompressionStream !== "function") return "DecompressionStream";
  if (typeof Worker !== "function") return "workers";
  return "";
};

// The pieces of a blob; `tick` is called with the compressed bytes of each piece that has come.
LIVE.pieces = async (name, entry, tick = () => {}) => {
  const have = LIVE.blobs[name] || [];
  for (let i = 0; i < entry.pieces; i++) {
    if (typeof have[i] !== "string") {
      await new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = `${name}-${i}.js`;
        script.onload = () => { script.remove(); done(); };
        script.onerror = () => { script.remove(); failed(Error(`The file ${name}-${i}.js is missing. Build the book again, or copy its whole folder.`)); };
        document.head.append(script);
      });
    }
    tick(entry.packed / entry.pieces);
  }
  const found = LIVE.blobs[name];
  delete LIVE.blobs[name];  // the worker keeps what it needs
  if (!found || found.length !== entry.pieces) throw Error(`The files ${name}-*.js are cut or damaged. Build the book again, or copy its folder again.`);
  return found;
};

// Loads all that drawing needs and starts the worker. Returns ask(kind, message), a promise of the answer.
LIVE.connect = async (manifest, onProgress, onStep) => {
  const parts = { ...Object.fromEntries(Object.entries(manifest.runtime).map(([k, v]) => [`runtime-${k}`, v])),
    ...Object.fromEntries(["text", "network", "decoder"].map(k => [k, manifest.graphs[k].blob])) };
  const total = Object.values(parts).reduce((n, entry) => n + entry.packed, 0), blobs = {};
  let come = 0;
  for (const [name, entry] of Object.entries(parts)) {
    blobs[name] = await LIVE.pieces(name, entry, bytes => onProgress((come += bytes) / total, ""));
  }
  const read = async name => LIVE.open.bytes(`runtime-${name}`, manifest.runtime[name], blobs[`runtime-${name}`]);
  const [script, loader, code] = [await read("script"), await read("loader"), await read("code")];
  const source = new Blob([script, "\n", LIVE.source, "\nLIVE.worker();"], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(source)), waiting = new Map();
  let number = 0;
  worker.onmessage = ({ data }) => {
    if (data.kind === "progress") return onProgress(1, data.what);
    if (data.kind === "step") return onStep(data.step, data.of);
    const { done, failed } = waiting.get(data.id);
    waiting.delete(data.id);
    return data.error ? failed(Error(data.error)) : done(data.value);
  };
  worker.onerror = event => {
    for (const { failed } of waiting.values()) failed(Error(`The worker stopped: ${event.message || "no reason given"}`));
    waiting.clear();
  };
  const ask = (kind, message = {}, transfer = []) => new Promise((done, failed) => {
    if (kind !== "stop") waiting.set(++number, { done, failed });
    worker.postMessage({ kind, id: number, ...message }, transfer);
  });
  const { text, network, decoder } = blobs, slim = { ...manifest, stills: null, tables: null, noise: null };
  await ask("start", { manifest: slim, blobs: { text, network, decoder }, loader, code }, [code.buffer]);
  return ask;
};
