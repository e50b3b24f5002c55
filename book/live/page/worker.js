// The worker: answers the page's messages one after the other, so that drawing never freezes the page.
// It is written as a function because the page makes a worker from its text: a page opened from disk may not name a file.
LIVE.worker = () => {
  let engine = null, last = null, stop = false, queue = Promise.resolve(), verifier;  // its pieces come once
  const now = () => performance.now();

  const start = async ({ manifest, blobs, loader, code }) => {
    ort.env.wasm.numThreads = 1;
    const address = (part, type) => URL.createObjectURL(new Blob([part], { type }));
    // Both by address: given the bytes instead, the loader looks for its neighbour beside a blob address, which has none.
    ort.env.wasm.wasmPaths = { mjs: address(loader, "text/javascript"), wasm: address(code, "application/wasm") };
    ort.env.logLevel = "error";
    const began = now();
    engine = await LIVE.engine(ort, manifest, blobs, what => postMessage({ kind: "progress", what }));
    return { seconds: (now() - began) / 1000 };
  };

  const draw = async ({ ids, empty, noise, table, guidance, adapter, strength, pieces, judge }) => {
    stop = false;
    if (judge) verifier = judge.pieces || verifier;
    const began = now();
    await engine.adapt(adapter, strength, pieces);
    const adapted = now(), count = noise.length / engine.cells, size = 4, images = [];
    last = { predictions: table.map(() => []), latents: [] };
    for (let from = 0; from < count; from += size) {  // in portions: the answer to "stop" is quick
      const part = noise.subarray(from * engine.cells, Math.min(count, from + size) * engine.cells);
      const found = await engine.sample({ ids, empty, noise: part, table, guidance, stopped: () => stop,
        onStep: (step, of) => postMessage({ kind: "step", step: from / size * of + step, of: Math.ceil(count / size) * of }) });
      if (!found) return { stopped: true };
      found.predictions.forEach((x0, step) => last.predictions[step].push(x0));
      last.latents.push(found.latents);
      images.push(await engine.decode(found.latents));
    }
    const drawn = now(), joined = join(images);
    const scores = judge ? await engine.score(joined, judge.ids, verifier) : null;
    return { images: joined, scores, milliseconds: { adapt: adapted - began, picture: (drawn - adapted) / count } };
  };

  const join = parts => {
    const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) { out.set(part, at); at += part.length; }
    return out;
  };

  // What the network took the clean pictures to be at a step, of the pictures at `places`.
  const look = async ({ step, places }) => {
    const all = join(last.predictions[step]);
    return { images: await engine.decode(join(places.map(i => all.slice(i * engine.cells, (i + 1) * engine.cells)))) };
  };

  const acts = { start, draw, look };
  onmessage = ({ data }) => {
    if (data.kind === "stop") { stop = true; return; }
    queue = queue.then(async () => {
      try {
        postMessage({ kind: "answer", id: data.id, value: await acts[data.kind](data) });
      } catch (error) {
        postMessage({ kind: "answer", id: data.id, error: String(error && error.message || error) });
      }
    });
  };
};
