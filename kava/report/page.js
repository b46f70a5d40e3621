// Draws every chart of the page from the specification that stands beside it.
for (const place of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
  // `ast` makes Vega interpret its expressions: the page's policy forbids eval.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" } };
  vegaEmbed(place, spec, options).catch((error) => {
    place.textContent = "This chart could not be drawn (" + error.message + "); its numbers stand in the tables.";
    console.error(error);
  });
}
