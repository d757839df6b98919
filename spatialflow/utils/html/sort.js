"use strict";
// Numbers sort by value, whatever follows them in their cell ("74.5 (72.1 to 76.9)"); other cells as text.
const value = (cell) => {
  const number = cell.textContent.trim().replace("\u2212", "-").match(/^[-+]?\d+(\.\d+)?/);
  return number ? parseFloat(number[0]) : cell.textContent.trim();
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(value(a.cells[column]), value(b.cells[column])) * (up ? 1 : -1));
      table.tBodies[0].append(...rows);
    });
  });
}
