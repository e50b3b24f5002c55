// Draws with the built page's own files in node. Argument: a JSON file {folder, runtime, cases, texts}; answer on stdout.
const fs = require("fs"), path = require("path"), vm = require("vm");
const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ort = require(path.join(job.runtime, "ort.wasm.min.js"));
const runs = name => vm.runInThisContext(fs.readFileSync(path.join(job.folder, name), "utf8"), { filename: name });
for (const name of ["blobs.js", "manifest.js", "tokens.js", "noise.js", "engine.js"]) runs(name);
const m = LIVE.manifest, flat = numbers => Buffer.from(new Float32Array(numbers).buffer).toString("base64");

const pieces = name => {
  for (const file of fs.readdirSync(job.folder)) if (new RegExp(`^${name}-\\d+\\.js$`).test(file)) runs(file);
  return LIVE.blobs[name];
};

(async () => {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = { mjs: require("url").pathToFileURL(path.join(job.runtime, "ort-wasm-simd-threaded.mjs")).href };
  ort.env.wasm.wasmBinary = fs.readFileSync(path.join(job.runtime, "ort-wasm-simd-threaded.wasm"));
  const tokens = Object.fromEntries(Object.entries(m.tokenizers).map(([k, data]) => [k, LIVE.tokenizer(data)]));
  const answer = { tokens: {}, pictures: [], normal: [...LIVE.normal(7, 4096)] };
  for (const [kind, one] of Object.entries(tokens)) answer.tokens[kind] = job.texts.map(text => [...one.encode(text)]);
  if (job.cases.length) {
    const blobs = Object.fromEntries(["text", "network", "decoder"].map(name => [name, pieces(name)]));
    const engine = await LIVE.engine(ort, m, blobs);
    for (const { prompt, adapter, strength, steps, guidance } of job.cases) {
      await engine.adapt(adapter, strength, adapter && strength ? pieces(`adapter-${adapter}`) : undefined);
      const drawn = await engine.sample({ ids: tokens.model.encode(prompt), empty: tokens.model.encode(""), table: m.tables[steps],
        noise: Float32Array.from(m.noise.slice(0, job.seeds).flat()), guidance });
      const images = await engine.decode(drawn.latents), early = await engine.decode(drawn.predictions[2]);
      const scores = await engine.score(images, tokens.verifier.encode(prompt), engine.verifies ? undefined : pieces("verifier"));
      answer.pictures.push({ images: flat(images), early: flat(early), scores: [...scores] });
    }
  }
  process.stdout.write(JSON.stringify(answer));
})().catch(error => { console.error(String(error.stack || error)); process.exit(1); });
