// Tables marked `sortable`: their headings become buttons. A cell sorts by its data-value, or by its text if it has none.
{
  const sortable = document.querySelectorAll("table.sortable");

  // A number, a text, or null for a cell whose value is missing.
  const valueOf = (cell) => {
    const held = cell.dataset.value;
    if (held === undefined) return cell.textContent.trim();
    return held === "" ? null : Number(held);
  };

  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));

  function sort(table, heading, column) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row.cells[column]) }));
    const known = rows.filter(({ value }) => value !== null);
    const missing = rows.filter(({ value }) => value === null);
    // What is best or largest is looked for first, and names from A to Z.
    const first = known.some(({ value }) => typeof value === "number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(a.value, b.value));
    for (const each of table.tHead.querySelectorAll("th")) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    body.append(...[...known, ...missing].map(({ row }) => row));
  }

  for (const table of sortable) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, heading, column));
    });
  }
}
