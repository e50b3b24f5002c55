// The search field of the map: hides what does not match, opens what does.
document.addEventListener("DOMContentLoaded", () => {
  const map = document.getElementById("sv-map");
  if (!map) return;
  const field = map.querySelector("input[type=search]"), said = map.querySelector("output");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const item of map.querySelectorAll("li[data-name]")) {
      const fits = words.every(word => item.dataset.name.includes(word));
      item.hidden = !fits;
      found += fits;
    }
    for (const fold of map.querySelectorAll("details")) {
      fold.open = words.length > 0 && fold.querySelector("li:not([hidden])") !== null;
      fold.hidden = fold.querySelector("li:not([hidden])") === null;
    }
    for (const tile of map.querySelectorAll(".sv-tile")) tile.hidden = tile.querySelector("li:not([hidden])") === null;
    for (const band of map.querySelectorAll(".sv-band")) band.hidden = band.querySelector(".sv-tile:not([hidden])") === null;
    said.textContent = words.length ? `${found} found` : "";
  });
});

// Source shown from the library: each line becomes a box, so that what wraps stands six characters further in.
document.addEventListener("DOMContentLoaded", () => {
  for (const code of document.querySelectorAll(".cell_output .highlight-python pre")) {
    code.innerHTML = code.innerHTML.replace(/\n$/, "").split("\n").map(line => {  // Pygments closes its marks on each line
      const indent = line.replace(/<[^>]*>/g, "").match(/^ */)[0].length;
      return line ? `<span class="sv-line" style="--sv-indent: ${indent}ch">${line}</span>` : line;
    }).join("\n") + "\n";
  }
});
