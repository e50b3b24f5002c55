// The sampler: the graphs of the library run by onnxruntime-web, adapters merged into the weights. No page in here.
LIVE.engine = async (ort, manifest, blobs, say = () => {}) => {
  const sum = list => list.reduce((n, w) => n + w.size, 0);
  const shape = manifest.latent, cells = shape.reduce((a, b) => a * b), pixels = 3 * manifest.height * manifest.width;

  const opened = async name => {
    const entry = manifest.graphs[name], bytes = await LIVE.open.bytes(name, entry.blob, blobs[name]);
    const structure = bytes.slice(0, entry.structure), rest = bytes.subarray(entry.structure);
    const weights = entry.format === "rows" ? LIVE.open.fromRows(rest, entry.weights) : LIVE.open.widen(rest);
    if (weights.length !== sum(entry.weights)) throw Error(`The files ${name}-*.js do not fit this page. Build the book again.`);
    return { structure, weights };
  };
  const session = (name, { structure, weights }) => ort.InferenceSession.create(structure, {
    executionProviders: ["wasm"], graphOptimizationLevel: "all",
    externalData: [{ path: name, data: new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength) }],
  });

  const sessions = {}, adapters = {};
  for (const name of ["text", "decoder"]) {
    say(`opening ${name}`);
    sessions[name] = await session(name, await opened(name));
  }
  say("opening network");
  const base = await opened("network"), places = {};
  manifest.graphs.network.weights.reduce((at, w) => { places[w.name] = at; return at + w.size; }, 0);
  let current = {};  // the network's session is made with the first adapter that is asked for

  const run = async (name, feeds, output) => {
    const inputs = {};
    for (const [key, [kind, data, dims]] of Object.entries(feeds)) inputs[key] = new ort.Tensor(kind, data, dims);
    return (await sessions[name].run(inputs))[output].data;
  };

  // W + s B A for every adapted matrix; the graph may hold W transposed.
  const merged = (values, list, strength) => {
    const weights = base.weights.slice();
    let from = 0;
    for (const { weight, out, inner, rank, transposed } of list) {
      const A = values.subarray(from, from + rank * inner), B = values.subarray(from + rank * inner, from + rank * (inner + out));
      from += rank * (inner + out);
      const at = places[weight], row = new Float64Array(inner);
      for (let o = 0; o < out; o++) {
        row.fill(0);
        for (let r = 0; r < rank; r++) {
          const b = strength * B[o * rank + r];
          for (let i = 0; i < inner; i++) row[i] += b * A[r * inner + i];
        }
        for (let i = 0; i < inner; i++) weights[at + (transposed ? i * out + o : o * inner + i)] += row[i];
      }
    }
    return weights;
  };

  // The network with an adapter at a strength: 0 is the base model.
  const adapt = async (name, strength, pieces) => {
    if (strength === 0) name = null;
    if (sessions.network && name === current.name && (name === null || strength === current.strength)) return;
    if (name !== null && !adapters[name]) {
      const entry = manifest.adapters.find(a => a.name === name);
      adapters[name] = LIVE.open.widen(await LIVE.open.bytes(`adapter-${name}`, entry.blob, pieces));
    }
    const weights = name === null ? base.weights : merged(adapters[name], manifest.adapters.find(a => a.name === name).matrices, strength);
    const fresh = await session("network", { structure: base.structure, weights });
    if (sessions.network) await sessions.network.release();
    sessions.network = fresh;
    current = { name, strength };
  };

  const repeated = (array, times) => {
    const out = new array.constructor(array.length * times);
    for (let i = 0; i < times; i++) out.set(array, i * array.length);
    return out;
  };

  // One guided network call. x: B latents; states: unconditional and conditional text states.
  const predict = async (x, t, count, states, guidance) => {
    const both = guidance !== 1, n = both ? 2 * count : count, length = states.text.length / manifest.textWidth;
    const h = new Float32Array(n * states.text.length);
    if (both) h.set(repeated(states.empty, count));
    h.set(repeated(states.text, count), both ? count * states.text.length : 0);
    const out = await run("network", {
      x: ["float32", both ? repeated(x, 2) : x, [n, ...shape]], t: ["float32", new Float32Array(n).fill(t), [n]],
      h: ["float32", h, [n, length, manifest.textWidth]],
    }, "out");
    if (!both) return out;
    const half = count * cells, guided = new Float32Array(half);
    for (let i = 0; i < half; i++) guided[i] = out[i] + guidance * (out[half + i] - out[i]);
    return guided;
  };

  // Other messages (stop) get their turn. A timer would wait 4 ms each time.
  const pause = () => new Promise(go => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); go(); };
    port2.postMessage(0);
  });

  // From noise (B latents) to { latents, predictions: x0 of each step }; null where `stopped` said so.
  const sample = async ({ ids, empty, noise, table, guidance, onStep = () => {}, stopped = () => false }) => {
    const count = noise.length / cells, encode = async tokens => run("text", { ids: ["int32", tokens, [1, tokens.length]] }, "h");
    const states = { text: await encode(ids), empty: await encode(empty) }, predictions = [];
    let x = noise.slice();
    for (const [index, [t, u, v, p, q]] of table.entries()) {
      const out = await predict(x, t, count, states, guidance), clean = new Float32Array(x.length), next = new Float32Array(x.length);
      for (let i = 0; i < x.length; i++) { clean[i] = u * x[i] + v * out[i]; next[i] = p * x[i] + q * out[i]; }
      predictions.push(clean);
      x = next;
      onStep(index + 1, table.length);
      await pause();
      if (stopped()) return null;
    }
    return { latents: x, predictions };
  };

  // Pictures (B, 3, H, W), clamped to [0, 1].
  const decode = async latents => {
    const images = (await run("decoder", { z: ["float32", latents, [latents.length / cells, ...shape]] }, "image")).slice();
    for (let i = 0; i < images.length; i++) images[i] = Math.min(1, Math.max(0, images[i]));
    return images;
  };

  // Rewards (B,) of pictures for one prompt. The reward model is opened with the first call.
  const score = async (images, ids, pieces) => {
    if (!sessions.verifier) {
      if (pieces) blobs.verifier = pieces;
      sessions.verifier = await session("verifier", await opened("verifier"));
    }
    const size = manifest.verified, count = images.length / pixels, out = new Float32Array(count);
    for (let from = 0; from < count; from += size) {  // the graph scores so many at once; the last portion is filled up
      const part = new Float32Array(size * pixels);
      part.set(images.subarray(from * pixels, Math.min(count, from + size) * pixels));
      const found = await run("verifier", { images: ["float32", part, [size, 3, manifest.height, manifest.width]],
        ids: ["int32", repeated(ids, size), [size, ids.length]] }, "score");
      out.set(found.subarray(0, Math.min(size, count - from)), from);
    }
    return out;
  };

  return { adapt, sample, decode, score, cells, has: name => Boolean(adapters[name]), get verifies() { return Boolean(sessions.verifier); } };
};
