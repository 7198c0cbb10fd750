// Fills every block of the page from the data that stands in it.

const BLOCKS = { plots, stack, bars, tokens };

for (const root of document.querySelectorAll("[data-block]")) {
  const source = root.querySelector("script");
  try {
    const data = JSON.parse(source.textContent);
    BLOCKS[root.dataset.block](root, data);
    root.dataset.ready = "yes";
  } catch (error) {
    root.append(el("p", { class: "broken" }, `This part could not be drawn: ${error.message}`));
    console.error(error);
  }
}
