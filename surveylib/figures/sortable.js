(box, start) => {
  const body = box.querySelector("tbody"), heads = [...box.querySelectorAll("thead th")];
  const sort = (k, up) => {
    const value = row => row.children[k].dataset.value;
    const rows = [...body.children];
    const words = rows.some(row => value(row) !== undefined && isNaN(value(row)));
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // nothing stays below
      return (up ? 1 : -1) * (words ? x.localeCompare(y) : x - y);
    });
    body.append(...rows);
    heads.forEach((head, n) => head.setAttribute("aria-sort", n === k ? (up ? "ascending" : "descending") : "none"));
  };
  heads.forEach((head, k) => head.querySelector("button").addEventListener("click",
    () => sort(k, head.getAttribute("aria-sort") === "descending")));
  if (start >= 0) sort(start, false);
}
