// Where the scripts with the blobs put their text, and how it becomes numbers. Runs in the page, the worker and node.
var LIVE = globalThis.LIVE = globalThis.LIVE || {};
LIVE.blobs = {};
LIVE.piece = (name, number, text) => { (LIVE.blobs[name] = LIVE.blobs[name] || [])[number] = text; };

LIVE.open = (() => {
  // Plain loops: Uint8Array.from with a function is several times slower.
  const decode = pieces => {
    const parts = pieces.map(atob);
    const bytes = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) for (let i = 0; i < part.length; i++) bytes[at++] = part.charCodeAt(i);
    return bytes;
  };

  const halves = new Float32Array(65536);
  for (let code = 0; code < 65536; code++) {
    const sign = code & 0x8000 ? -1 : 1, exponent = (code >> 10) & 31, fraction = code & 1023;
    halves[code] = exponent === 0 ? sign * fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  const widen = bytes => {
    const count = bytes.length / 2, out = new Float32Array(count);
    for (let i = 0; i < count; i++) out[i] = halves[(bytes[i] << 8) | bytes[count + i]];
    return out;
  };

  const fromRows = (bytes, list) => {
    const coded = list.reduce((n, w) => n + (w.rows ? w.size : 0), 0);
    const codes = new Int8Array(bytes.buffer, bytes.byteOffset, coded), fine = widen(bytes.subarray(coded));
    const out = new Float32Array(list.reduce((n, w) => n + w.size, 0));
    let at = 0, code = 0, number = 0;
    for (const { size, rows } of list) {
      const width = rows ? size / rows : size;
      for (let i = 0; i < size; i++) out[at++] = rows ? codes[code++] * fine[number + Math.floor(i / width)] : fine[number + i];
      number += rows || size;
    }
    return out;
  };

  // The bytes of a blob. Throws a sentence that can be shown to a reader.
  const bytes = async (name, entry, pieces) => {
    for (let i = 0; i < entry.pieces; i++) {
      if (!pieces || typeof pieces[i] !== "string") throw Error(`The file ${name}-${i}.js is missing or damaged. Build the book again, or copy its folder again.`);
    }
    try {
      const packed = decode(pieces);
      if (packed.length !== entry.packed) throw Error("length");
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const found = new Uint8Array(await new Response(stream).arrayBuffer());
      if (found.length !== entry.bytes) throw Error("length");
      return found;
    } catch (error) {
      throw Error(`The files ${name}-*.js are cut or damaged. Build the book again, or copy its folder again.`);
    }
  };

  return { bytes, widen, fromRows };
})();
