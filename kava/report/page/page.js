// Draws every chart of the page from the specification that stands beside it.
const views = [];
const boxes = [...document.querySelectorAll("input[data-arm]")];

// Curves of many arms show in colour those that are ticked.
function highlight() {
  const chosen = boxes.filter((box) => box.checked).map((box) => box.dataset.arm);
  for (const view of views) view.signal("highlighted", chosen).runAsync();
}

for (const place of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
  const choosable = (spec.params || []).some((param) => param.name === "highlighted");
  // `ast` makes Vega interpret its expressions: the page's policy forbids eval.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" } };
  vegaEmbed(place, spec, options)
    .then(({ view }) => { if (choosable) { views.push(view); highlight(); } })
    .catch((error) => {
      place.textContent = "This chart could not be drawn (" + error.message + "); its numbers stand in the tables.";
      console.error(error);
    });
}

for (const box of boxes) {
  box.addEventListener("change", () => {
    for (const same of boxes) if (same.dataset.arm === box.dataset.arm) same.checked = box.checked;
    highlight();
  });
}
for (const button of document.querySelectorAll("[data-choose]")) {
  button.addEventListener("click", () => {
    for (const box of boxes) box.checked = button.dataset.choose === "all";
    highlight();
  });
}
