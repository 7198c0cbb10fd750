// Uses a page as a reader would and writes what it saw, a line a check, into the document. Put before </body> of a copy of the page.
(async () => {
  const seen = [];
  const check = (name, holds, detail = "") => seen.push(`${holds ? "ok" : "FAILED"} ${name} ${detail}`.trim());
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const fire = (node, kind, more = {}) => node.dispatchEvent(new (kind.startsWith("pointer") ? PointerEvent : kind.startsWith("key") ? KeyboardEvent : Event)(kind, { bubbles: true, cancelable: true, ...more }));
  const set = (input, value) => {
    input.value = value;
    fire(input, "input");
    fire(input, "change");
  };
  const labelled = (text, within) => all("label", within).find((label) => label.textContent.startsWith(text))?.querySelector("input, select");
  // A made-up pointer cannot be captured.
  Element.prototype.setPointerCapture = () => {};
  try {
    await pause(300);
    check("every block is drawn", all("[data-block]").every((block) => block.dataset.ready === "yes"), String(all("[data-block]").length));
    check("nothing says that it is broken", all(".broken").filter((node) => !node.closest("noscript")).length === 0);
    // A browser without a screen makes no window narrower than 500: the page is made narrower than that.
    if (innerWidth <= 500) document.body.style.width = "390px";
    await pause(1000);
    const width = document.body.clientWidth;
    check("the page is no wider than its place", document.body.scrollWidth <= width && document.documentElement.scrollWidth <= innerWidth, `${document.body.scrollWidth} of ${width}`);
    check("no element came out of a text", all("img, iframe, object, body script:not([type]):not([data-test])").length === 1);
    check("no text ran", window.hacked === undefined);

    const plots = all("[data-block=plots]");
    if (plots.length > 0) {
      const drawn = all("path.smooth").filter((path) => path.getAttribute("d").length > 10);
      check("curves are drawn", drawn.length >= 8, String(drawn.length));
      // SFT has the most steps.
      const block = plots.find((one) => one.textContent.includes("sft/loss"));
      const curve = () => all("figure", block).find((figure) => figure.textContent.includes("sft/loss"));
      const path = () => curve().querySelector("path.smooth").getAttribute("d");
      const rough = path();
      set(labelled("Smoothing", block), 0.9);
      check("smoothing changes a curve and keeps the raw one", path() !== rough && all("path.raw", curve()).length === 1);
      set(labelled("Smoothing", block), 0);
      check("without smoothing the curve is as it was", path() === rough);
      const picture = () => curve().querySelector("svg");
      const box = picture().getBoundingClientRect();
      const at = (share) => ({ clientX: box.left + share * box.width, clientY: box.top + 50, pointerId: 1 });
      const whole = all("button", block).find((button) => button.textContent === "Show all steps");
      fire(picture(), "pointermove", at(0.5));
      check("pointing at a curve gives its value", /step \d+: [\d.−]+/.test(curve().querySelector("output").textContent), curve().querySelector("output").textContent);
      fire(picture(), "pointerdown", at(0.4));
      fire(picture(), "pointermove", at(0.6));
      fire(picture(), "pointerup", at(0.6));
      check("dragging zooms in", !whole.disabled && path() !== rough);
      whole.click();
      check("one button shows all again", whole.disabled && path() === rough);
      fire(picture(), "keydown", { key: "+" });
      check("the keyboard zooms", !whole.disabled);
      fire(picture(), "keydown", { key: "Escape" });
      fire(picture(), "keydown", { key: "Home" });
      const first = curve().querySelector("output").textContent;
      fire(picture(), "keydown", { key: "ArrowRight" });
      check("arrow keys move the cursor", first.startsWith("step 1:") && curve().querySelector("output").textContent.startsWith("step 2:"), first);
      const rl = plots[0];
      const find = labelled("Find", rl);
      set(find, "entropy");
      const left = all("figure", rl).filter((figure) => !figure.hidden);
      check("metrics are found by name", left.length >= 1 && left.every((figure) => figure.querySelector("b").textContent.includes("entropy")), String(left.length));
      set(find, "");
      const boxes = all(".legend input", rl);
      const count = () => all("path.smooth", rl).length;
      const before = count();
      boxes[0].click();
      check("the legend hides a series", boxes.length >= 2 && count() < before, `${before} then ${count()}`);
      boxes[0].click();
    }
    for (const kind of ["stack", "bars"]) {
      const blocks = all(`[data-block=${kind}]`);
      if (plots.length > 0) check(`${kind} are drawn`, blocks.length > 0 && blocks.every((block) => all("svg path, svg rect", block).length > 0), String(blocks.length));
    }

    const root = document.querySelector("[data-block=tokens]");
    const data = JSON.parse(root.querySelector("script").textContent);
    const spans = () => all(".text > span", root);
    check("tokens are there", spans().length > 0, String(spans().length));
    const colours = () => spans().map((span) => span.style.backgroundColor).join();
    const painted = () => spans().filter((span) => span.style.backgroundColor.startsWith("rgb(") || span.style.backgroundColor.includes("var(")).length;
    const measure = labelled("Colour by", root);
    const measures = [...measure.options].map((one) => one.value);
    check("there is a choice of colours", measures.length >= 2, measures.join());
    let numbered = 0;
    for (const one of measures) {
      // Two measures may be in proportion: then the numbers at the scale tell them apart.
      const look = () => colours() + root.querySelector(".scale").textContent;
      const was = look();
      set(measure, one);
      check(`colour by ${one}`, painted() > 0 && (one === measures[0] || look() !== was), `${painted()} painted, ${root.querySelector(".scale").textContent}`);
      // A measure that this step has not recorded says so instead.
      const scale = root.querySelector(".scale").textContent;
      numbered += /\d/.test(scale);
      check(`the scale of ${one} has numbers or says why not`, /\d|not recorded/.test(scale), scale);
    }
    check("scales have numbers", numbered >= 2, String(numbered));
    const inspect = () => root.querySelector(".inspect").textContent;
    spans()[0].click();
    check("touching a token gives its values", inspect().startsWith("Token 1 of answer 1") && /\d/.test(inspect()), inspect());
    const body = root.querySelector(".text");
    fire(body, "keydown", { key: "End" });
    check("keys move between tokens", inspect().startsWith(`Token ${all(":scope > span", body).length} of answer 1`), inspect());
    if (data.steps.some((step) => step.groups.some((group) => group.answers.some((answer) => "process_rewards" in answer.columns)))) {
      const marked = () => all(".sum path", root).length > 0 && all(".sum circle[visibility=visible]", root).length === 1;
      // It is drawn when the browser tells its width, which on a busy machine takes a while.
      for (let left = 40; left > 0 && !marked(); left--) await pause(50);
      check("the running sum is a line with its place marked", marked());
      document.body.style.width = `${width - 20}px`;
      await pause(300);
      check("and stays marked at another width", marked());
      document.body.style.width = innerWidth <= 500 ? "390px" : "";
      await pause(300);
    }
    const surprising = all("details", root)[0];
    surprising.open = true;
    const items = all("button", surprising);
    check("the most surprising tokens are listed", items.length > 0, items[0]?.textContent);
    items[0].click();
    check("and lead to their place", all(".text span.on", root).length === 1);
    const longest = data.vocabulary.filter((text) => text.trim()).sort((a, b) => b.length - a.length)[0];
    const search = labelled("Find", root);
    set(search, longest);
    await pause(400);
    check("a text is found", all(".list mark", root).some((mark) => mark.textContent.toLowerCase() === longest.toLowerCase()), longest);
    all(".list button", root)[0].click();
    check("what was found is marked", all(".text span.found", root).length > 0 || all("mark", root).length > 0);
    set(search, "no such text anywhere");
    await pause(400);
    check("and nothing is found where nothing is", root.textContent.includes("Nothing found."));
    set(search, "");
    await pause(400);
    const step = labelled("Step", root);
    if (step) {
      set(step, 0);
      check("a step is chosen", labelled("Prompt", root).options.length === data.steps[0].groups.length);
      const next = root.querySelector("[aria-label='next prompt']");
      const was = root.querySelector(".answers").textContent + labelled("Prompt", root).value + step.value;
      next.click();
      check("the next prompt follows", root.querySelector(".answers").textContent + labelled("Prompt", root).value + step.value !== was);
      const outcome = labelled("Prompts with", root);
      set(outcome, "wrong");
      const shown = [...labelled("Prompt", root).options].map((one) => one.textContent);
      check("prompts are chosen by outcome", shown.every((text) => text.includes("· 0 of")), shown.join(" | "));
      set(outcome, "any");
    }
    const texts = (answer) => all(".text > span", answer).length;
    check("each answer has its tokens", all(".answer", root).every((answer) => answer.textContent.includes(`${texts(answer)} tokens`)));
  } catch (error) {
    check("the page was used to the end", false, `${error.message} ${error.stack}`);
  }
  for (const error of window.errors) check("no error in the console", false, error);
  check("done", true, String(seen.length));
  const out = document.createElement("pre");
  out.id = "checks";
  out.hidden = true;
  out.textContent = seen.join("\n");
  document.body.append(out);
})();
