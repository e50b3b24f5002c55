// Standard normal numbers of a seed: mulberry32 (32-bit counter hash) and Box-Muller. Not torch's stream; the four fixed
// seeds of the page are torch's and are shipped as numbers.
LIVE.normal = (seed, count) => {
  let state = (seed * 2654435761) >>> 0;
  const uniform = () => {
    state = (state + 0x6D2B79F5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
};
