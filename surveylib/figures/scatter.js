(box, spec) => {
  const [across, up] = box.querySelectorAll("select"), marks = [...box.querySelectorAll("[data-point]")];
  const make = (tag, more, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in more) made.setAttribute(name, more[name]);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const {left, right, top, floor} = spec.frame, X = v => left + v * (right - left), Y = v => floor - v * (floor - top);
  const draw = () => {
    const x = spec.axes[across.value], y = spec.axes[up.value], grid = box.querySelector(".sv-ticks");
    grid.replaceChildren();
    x.ticks.forEach(([v, text]) => grid.append(make("path", {d: `M${X(v)} ${floor}v5`, style: "stroke:var(--sv-rule)"}),
      make("text", {x: X(v), y: floor + 19, "text-anchor": "middle"}, text)));
    y.ticks.forEach(([v, text]) => grid.append(make("path", {d: `M${left} ${Y(v)}h-5`, style: "stroke:var(--sv-rule)"}),
      make("text", {x: left - 8, y: Y(v) + 4, "text-anchor": "end"}, text)));
    grid.append(make("text", {x: (left + right) / 2, y: floor + 42, "text-anchor": "middle", class: "sv-axis"}, x.label),
      make("text", {transform: `translate(16 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle", class: "sv-axis"}, y.label));
    const size = parseFloat(getComputedStyle(marks[0].querySelector("text")).fontSize), seen = [];
    let missing = [];
    marks.forEach((mark, k) => {
      const px = x.at[k], py = y.at[k], there = px !== null && py !== null;
      mark.style.display = there ? "" : "none";
      if (!there) return missing.push(spec.names[k]);
      mark.setAttribute("transform", `translate(${X(px)} ${Y(py)})`);
      const bar = mark.querySelector(".sv-bar");
      if (bar) bar.setAttribute("d", y.bars[k] ? `M0 ${Y(y.bars[k][0]) - Y(py)}V${Y(y.bars[k][1]) - Y(py)}` : "");
      seen.push({k, x: X(px), y: Y(py), w: (mark.querySelector("text").getComputedTextLength() || 0.56 * size * spec.names[k].length) + 8});
    });
    seen.sort((a, b) => a.y - b.y);  // names go where nothing stands yet: right or left of the mark, then lower
    const taken = seen.map(p => [p.x - 6, p.y - 6, p.x + 6, p.y + 6]);
    taken.push([0, top, left, floor]);  // the ticks and the title of the axis
    const rows = [0, ...[...Array(10).keys()].flatMap(n => [n + 1, -n - 1])];  // the nearest first
    seen.forEach(p => {
      const name = marks[p.k].querySelector("text");
      let best = null;
      for (const n of rows) for (const side of [1, -1]) {
        const dy = n * size, x0 = side > 0 ? p.x + 9 : p.x - 9 - p.w, y0 = p.y + dy - size / 2;
        const rect = [x0, y0, x0 + p.w, y0 + size];
        const out = x0 < 4 || x0 + p.w > right + 28 || y0 < 0 || y0 + size > floor ? 1e6 : 0;  // a name that is cut is worse than one that is covered
        const hits = taken.reduce((n, r) => n + Math.max(0, Math.min(rect[2], r[2]) - Math.max(rect[0], r[0]))
          * Math.max(0, Math.min(rect[3], r[3]) - Math.max(rect[1], r[1])), 0);
        const price = out + hits + Math.abs(dy) / 4 + (side < 0 ? 1 : 0);
        if (best === null || price < best.price) best = {price, rect, dy, side};
      }
      taken.push(best.rect);
      name.setAttribute("x", best.side * 10);
      name.setAttribute("y", best.dy + size / 3);
      name.setAttribute("text-anchor", best.side > 0 ? "start" : "end");
      const far = Math.abs(best.dy) > 1.5 * size;  // a name that does not stand beside its mark is tied to it
      marks[p.k].querySelector(".sv-lead").setAttribute("d", far ? `M0 0L${best.side * 8} ${best.dy}` : "");
    });
    box.querySelector(".sv-note").textContent = missing.length ? "Has no such number: " + missing.join(", ") + "." : "";
  };
  [across, up].forEach(choice => choice.addEventListener("change", draw));
  draw();
}
