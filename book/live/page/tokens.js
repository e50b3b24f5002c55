// The tokenizer of the model (byte-level BPE of CLIP), over the merges and the vocabulary that the model ships.
LIVE.tokenizer = data => {
  const rank = new Map(data.merges.map((pair, i) => [pair.join(" "), i]));
  const pattern = new RegExp(data.pattern, "gu");
  const number = new Map(data.vocab.map((piece, i) => [piece, i])), special = new Set(data.special), cache = new Map();

  // Byte to printable character, as GPT-2 defined it.
  const letters = [], extra = [];
  for (let b = 0; b < 256; b++) {
    const printable = (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
    letters[b] = String.fromCharCode(printable ? b : 256 + extra.length);
    if (!printable) extra.push(b);
  }

  const split = word => {
    const parts = [...new TextEncoder().encode(word)].map(b => letters[b]);
    parts[parts.length - 1] += "</w>";
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const found = rank.get(parts[i] + " " + parts[i + 1]);
        if (found !== undefined && found < best) { best = found; place = i; }
      }
      if (place < 0) return parts;
      const [a, b] = data.merges[best], merged = [];
      for (let i = 0; i < parts.length; i++) {
        if (parts[i] === a && parts[i + 1] === b) { merged.push(a + b); i++; } else merged.push(parts[i]);
      }
      parts.splice(0, parts.length, ...merged);
    }
  };

  const pieces = text => {
    const out = [];
    for (const word of text.normalize("NFC").replace(/\s+/gu, " ").toLowerCase().match(pattern) || []) {
      if (!cache.has(word)) cache.set(word, special.has(word) ? [number.get(word)] : split(word).map(p => number.get(p) ?? data.unknown));
      out.push(...cache.get(word));
    }
    return out;
  };

  return {
    // How many tokens the words take, and how many fit.
    count: text => pieces(text).length,
    room: data.length - 2,
    // Int32Array (length): begin, words, end, padding; what does not fit is cut, as the tokenizer of the model does.
    encode: text => {
      const ids = new Int32Array(data.length).fill(data.pad), found = pieces(text).slice(0, data.length - 2);
      ids[0] = data.begin;
      ids.set(found, 1);
      ids[found.length + 1] = data.end;
      return ids;
    },
  };
};
