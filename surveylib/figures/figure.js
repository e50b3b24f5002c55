// One figure: every control is a range input; what it shows was computed beforehand.
(box, spec) => {
  const inputs = [...box.querySelectorAll("input[type=range]")];
  const at = () => inputs.map(i => +i.value);
  const flat = v => v.reduce((n, x, k) => n * spec.shape[k] + x, 0);
  const draw = () => {
    const v = at(), n = flat(v);
    inputs.forEach((input, k) => {
      const label = spec.labels[k][v[k]];
      const said = input.parentElement.querySelector("output");
      if (said) said.textContent = label;
      input.setAttribute("aria-valuetext", label);
    });
    if (spec.kind === "frames") box.querySelector("img").src = spec.frames[n];
    if (spec.kind === "split") box.querySelector(".sv-split").style.setProperty("--cut", v[0] + "%");
    if (spec.kind === "lines") spec.curves.forEach((curve, k) => {
      box.querySelector(`[data-line="${k}"]`).setAttribute("d", curve.d[n]);
      const fill = box.querySelector(`[data-fill="${k}"]`);
      if (fill) fill.setAttribute("d", curve.f[n]);
      const name = box.querySelector(`[data-name="${k}"]`);
      if (name) { name.setAttribute("x", curve.at[n][0]); name.setAttribute("y", curve.at[n][1]); }
    });
    if (spec.notes) box.querySelector(".sv-note").textContent = spec.notes[n];
  };
  inputs.forEach(input => input.addEventListener("input", draw));
  const play = box.querySelector("button");
  if (play) {
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "\u25B6"; play.setAttribute("aria-label", "Play"); };
    const step = () => {
      const first = inputs[0], next = +first.value + 1;
      first.value = next > +first.max ? 0 : next;
      draw();
      if (+first.value === +first.max) stop();
    };
    play.hidden = false;
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (+inputs[0].value === +inputs[0].max) { inputs[0].value = 0; draw(); }
      timer = setInterval(step, spec.pace);
      play.textContent = "\u275A\u275A"; play.setAttribute("aria-label", "Pause");
    });
    inputs.forEach(input => input.addEventListener("pointerdown", stop));
  }
  draw();  // a browser may restore an old slider position
}
