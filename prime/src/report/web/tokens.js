// Answers side by side, their tokens coloured by what the reader chooses.

const minus = (a, b) => a.map((value, i) => value - b[i]);

/** What tokens can be coloured by: from which columns, and whether zero is the middle. */
const MEASURES = [
  { key: "reward", label: "Process reward", needs: ["process_rewards"], of: (a) => a, signed: true },
  { key: "ratio", label: "Log-ratio of the PRM to its reference", needs: ["prm_log_probs", "ref_log_probs"], of: minus, signed: true },
  { key: "advantage", label: "Advantage", needs: ["advantages"], of: (a) => a, signed: true },
  { key: "entropy", label: "Entropy (nats)", needs: ["entropies"], of: (a) => a },
  { key: "surprise", label: "Surprise (−log-prob)", needs: ["old_log_probs"], of: (a) => a.map((x) => -x) },
  { key: "drift", label: "Log-ratio of the policy to the reference", needs: ["old_log_probs", "ref_log_probs"], of: minus, signed: true },
  { key: "change", label: "Change of log-prob by the update", needs: ["updated_log_probs", "old_log_probs"], of: minus, signed: true },
  { key: "between", label: "Change of log-prob between minibatches", needs: ["new_log_probs", "old_log_probs"], of: minus, signed: true },
  { key: "value", label: "Critic's value before the token", needs: ["values"], of: (a) => a, signed: true },
  { key: "mark", label: "Mark", needs: ["marks"], of: (a) => a, signed: true },
];

/** How a token's text is written: what has no shape of its own is given one. */
function shape(text) {
  if (text === "") return el("span", { class: "odd" }, "·");
  const parts = document.createDocumentFragment();
  for (const c of text) {
    const code = c.codePointAt(0);
    if (c === "\n") parts.append(el("span", { class: "odd" }, "⏎"), "\n");
    else if (c === "\t") parts.append(el("span", { class: "odd" }, "⇥"), "\t");
    else if (code < 32 || (code >= 127 && code < 160) || (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code === 0xfeff) {
      parts.append(el("span", { class: "odd" }, `\\u${code.toString(16).padStart(4, "0")}`));
    } else parts.append(c);
  }
  return parts;
}

function tokens(root, data) {
  let step = 0;
  let group = 0;
  let chosen = null; // {answer, token}
  let found = "";
  const cards = [];

  /** An answer with its columns unpacked, once. */
  function unpacked(answer) {
    if (!answer.texts) {
      answer.texts = Array.from(integers(answer.tokens), (i) => data.vocabulary[i]);
      answer.unpacked = {};
      answer.measures = {};
    }
    return answer;
  }
  function column(answer, name) {
    const packed = answer.columns[name];
    if (packed == null) return null;
    if (packed.startsWith("=")) return column(answer, packed.slice(1));
    return (answer.unpacked[name] ??= floats(packed));
  }
  function measured(answer, measure) {
    unpacked(answer);
    if (measure.key in answer.measures) return answer.measures[measure.key];
    const columns = measure.needs.map((name) => column(answer, name));
    return (answer.measures[measure.key] = columns.every(Boolean) ? measure.of(...columns) : null);
  }
  const text = (answer) => unpacked(answer).texts.join("");
  const present = MEASURES.filter((measure) => data.steps.some((one) => one.groups.some((g) => g.answers.some((a) => measure.needs.every((name) => name in a.columns)))));
  // Policy and reference may be one model: then their ratio says nothing.
  const used = present.filter((measure) => measure.key !== "drift" || data.steps.some((one) => one.groups.some((g) => g.answers.some((a) => "ref_log_probs" in a.columns && a.columns.ref_log_probs !== "=old_log_probs"))));
  let measure = used.find((one) => one.key === data.open) ?? used[0];

  const option = (value, label) => el("option", { value }, label);
  const stepSelect = el("select", { onchange: () => go(Number(stepSelect.value), 0) }, ...data.steps.map((one, i) => option(i, one.label)));
  const groupSelect = el("select", { onchange: () => go(step, Number(groupSelect.value)) });
  const measureSelect = el("select", { onchange: () => {
    measure = used.find((one) => one.key === measureSelect.value);
    paint();
  } }, ...used.map((one) => option(one.key, one.label)));
  const outcomeSelect = el("select", { onchange: () => { fillGroups(); search(); } },
    ...[["any", "any outcome"], ["right", "all right"], ["wrong", "all wrong"], ["mixed", "some right, some wrong"], ["cut", "with one cut off"]].map(([value, label]) => option(value, label)));
  const query = el("input", { type: "search", placeholder: "text in prompts and answers" });
  const scope = el("select", { onchange: () => search() }, option("all", "in all steps"), option("one", "in this step"));
  const scale = el("div", { class: "scale", "aria-label": "colour scale" });
  const previous = el("button", { type: "button", onclick: () => turn(-1), "aria-label": "previous prompt" }, "←");
  const next = el("button", { type: "button", onclick: () => turn(1), "aria-label": "next prompt" }, "→");
  const results = el("div");
  const prompt = el("div", { class: "prompt", tabindex: 0, "aria-label": "prompt" });
  const answers = el("div", { class: "answers" });
  const inspect = el("div", { class: "inspect", "aria-live": "polite" });
  const surprising = el("details", {}, el("summary", {}, "Most surprising tokens of this step"));
  const stepNote = el("p", { class: "hint" });
  const many = data.steps.length > 1;
  const graded = data.steps.some((one) => one.groups.some((g) => g.answers.some((a) => a.outcome != null)));
  root.append(
    el("div", { class: "controls" },
      many ? el("label", { class: "grow" }, "Step ", stepSelect) : null,
      el("label", { class: "grow" }, data.groupWord ?? "Prompt", " ", groupSelect), previous, next),
    el("div", { class: "controls" },
      el("label", { class: "grow" }, "Colour by ", measureSelect), scale),
    el("div", { class: "controls" },
      el("label", { class: "grow" }, "Find ", query), many ? scope : null, graded ? el("label", {}, "Prompts with ", outcomeSelect) : null),
    results, stepNote, prompt, answers, inspect, surprising,
    el("p", { class: "hint" }, "Point at a token, touch it, or press the arrow keys in an answer for its exact values. A fine bar ends a step, where steps were marked. Numbers keep sixteen of their twenty-four bits: about five digits."));

  let waiting = 0;
  query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 200);
  });

  const right = (answer) => answer.outcome >= 0.5;
  function passes(one) {
    const wanted = outcomeSelect.value;
    const count = one.answers.filter(right).length;
    if (wanted === "right") return count === one.answers.length;
    if (wanted === "wrong") return count === 0;
    if (wanted === "mixed") return count > 0 && count < one.answers.length;
    if (wanted === "cut") return one.answers.some((answer) => answer.finished === false);
    return true;
  }
  const oneLine = (value) => value.replace(/\s+/g, " ").trim();
  function short(value, most) {
    const flat = [...oneLine(value)];
    return flat.length > most ? flat.slice(0, most - 1).join("") + "…" : flat.join("");
  }
  function groupLabel(one) {
    const known = one.answers.filter((answer) => answer.outcome != null);
    const score = known.length ? ` · ${known.filter(right).length} of ${known.length} right` : "";
    return short(one.prompt || text(one.answers[0]) || one.id, 48) + score;
  }
  function fillGroups() {
    const list = data.steps[step].groups.map((one, i) => [one, i]).filter(([one]) => passes(one));
    groupSelect.replaceChildren(...list.map(([one, i]) => option(i, groupLabel(one))));
    if (!list.some(([, i]) => i === group)) group = list.length ? list[0][1] : -1;
    groupSelect.value = group;
    show();
  }
  function turn(by) {
    const list = [...groupSelect.options].map((one) => Number(one.value));
    const place = list.indexOf(group) + by;
    if (place >= 0 && place < list.length) go(step, list[place]);
    else if (step + by >= 0 && step + by < data.steps.length) {
      go(step + by, 0);
      const last = groupSelect.options.length - 1;
      if (by < 0 && last > 0) go(step, Number(groupSelect.options[last].value));
    }
  }
  function go(toStep, toGroup, token) {
    const sameStep = toStep === step;
    step = toStep;
    group = toGroup;
    chosen = null;
    stepSelect.value = step;
    fillGroups();
    if (!sameStep || surprising.children.length < 2) listSurprising();
    if (token) choose(token.answer, token.token, true);
  }

  /** The magnitude of full colour: only a fiftieth of the step's tokens lie beyond it. */
  function limit() {
    const one = data.steps[step];
    one.limits ??= {};
    if (one.limits[measure.key] == null) {
      const sizes = one.groups.flatMap((g) => g.answers.flatMap((answer) => Array.from(measured(answer, measure) ?? [], Math.abs))).filter(Number.isFinite).sort((a, b) => a - b);
      one.limits[measure.key] = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.98))] || sizes[sizes.length - 1] : 0;
    }
    return one.limits[measure.key];
  }
  function background(value, most) {
    if (!Number.isFinite(value) || most === 0) return "";
    const strength = (Math.min(1, Math.abs(value) / most) * 0.72).toFixed(3);
    return `rgb(var(--${measure.signed ? (value < 0 ? "neg" : "pos") : "seq"}) / ${strength})`;
  }

  function show() {
    cards.length = 0;
    chosen = null;
    const one = data.steps[step].groups[group];
    previous.disabled = step === 0 && groupSelect.selectedIndex <= 0;
    next.disabled = step === data.steps.length - 1 && groupSelect.selectedIndex >= groupSelect.options.length - 1;
    stepNote.textContent = data.steps[step].note ?? "";
    if (!one) {
      prompt.textContent = "No prompt of this step has such answers.";
      answers.replaceChildren();
      return inform();
    }
    prompt.replaceChildren(shape(one.prompt || "(no prompt)"));
    prompt.hidden = !one.prompt && data.steps.every((s) => s.groups.every((g) => !g.prompt));
    answers.replaceChildren(...one.answers.map((answer, k) => card(unpacked(answer), k, one.answers.length)));
    paint();
  }
  function card(answer, k, of) {
    const spans = answer.texts.map((t, i) => {
      const span = el("span", { "data-i": i });
      span.append(shape(t));
      return span;
    });
    answer.ends?.forEach((i) => spans[i]?.classList.add("end"));
    const body = el("div", { class: "text", tabindex: 0, role: "group", "aria-label": `answer ${k + 1}, ${spans.length} tokens` }, ...spans);
    const where = (event) => {
      const span = event.target.closest?.("[data-i]");
      if (span && body.contains(span)) choose(k, Number(span.dataset.i));
    };
    body.addEventListener("pointerover", where);
    body.addEventListener("click", where);
    body.addEventListener("keydown", (event) => {
      const now = chosen?.answer === k ? chosen.token : -1;
      const jump = { ArrowRight: now + 1, ArrowLeft: Math.max(0, now - 1), ArrowDown: now + 10, ArrowUp: Math.max(0, now - 10), Home: 0, End: spans.length - 1 }[event.key];
      if (jump == null || spans.length === 0) return;
      event.preventDefault();
      choose(k, Math.min(jump, spans.length - 1), true);
    });
    markFound(answer, spans);
    const sum = el("div", { class: "sum" });
    const head = el("h4", {}, of > 1 ? el("b", {}, `Answer ${k + 1}`) : null,
      answer.outcome == null ? null : el("b", {}, answer.outcome >= 0.5 ? "✓" : "✗", ` outcome ${number(answer.outcome)}`),
      el("span", {}, `${answer.length ?? spans.length} tokens`),
      answer.finished === false ? el("span", {}, "cut off at the limit") : null,
      answer.length > spans.length ? el("span", {}, `only the first ${spans.length} are in this file`) : null,
      answer.note ? el("span", {}, answer.note) : null);
    const running = total(answer);
    if (running) drawSum(sum, running.values);
    cards.push({ spans, sum, running, body });
    return el("div", { class: "answer" }, head, body, running ? sum : null,
      running ? el("p", { class: "note" }, `${running.label}: ${signed(running.values[running.values.length - 1])} at the end`) : null);
  }
  function markFound(answer, spans) {
    if (!found) return;
    const whole = answer.texts.join("").toLowerCase();
    for (let at = whole.indexOf(found); at >= 0; at = whole.indexOf(found, at + found.length)) {
      let place = 0;
      answer.texts.forEach((t, i) => {
        if (place < at + found.length && place + t.length > at) spans[i].classList.add("found");
        place += t.length;
      });
    }
  }

  /** The implicit value of each prefix: the running sum of scaled log-ratios, or of rewards where there are no ratios. */
  function total(answer) {
    const prm = column(answer, "prm_log_probs");
    const reference = column(answer, "ref_log_probs");
    const beta = data.steps[step].beta;
    let each = null;
    let label = "Running sum of process rewards";
    if (prm && reference && beta != null) {
      each = minus(prm, reference).map((x) => x * beta);
      label = `Implicit value of the prefix (β ${number(beta)})`;
    } else each = column(answer, "process_rewards");
    if (!each || each.length === 0) return null;
    let sum = 0;
    return { label, values: Array.from(each, (x) => (sum += Number.isFinite(x) ? x : 0)) };
  }
  function drawSum(holder, values) {
    let place = null;
    let mark = () => {};
    holder.point = (i) => {
      place = i;
      mark();
    };
    onWidth(holder, (width) => {
      const low = Math.min(0, ...extremes(values));
      const high = Math.max(0, ...extremes(values));
      const x = (i) => 4 + (i / Math.max(1, values.length - 1)) * (width - 8);
      const y = (value) => 48 - ((value - low) / (high - low || 1)) * 44;
      const path = values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}`).join("");
      const dot = svg("circle", { r: 3.2, visibility: "hidden" });
      holder.replaceChildren(svg("svg", { viewBox: `0 0 ${width} 52`, role: "img", "aria-label": "running sum over the answer's tokens" },
        svg("line", { class: "grid", x1: 0, x2: width, y1: y(0), y2: y(0) }), svg("path", { d: path }), dot));
      // A place that was marked before stays marked at another width.
      mark = () => {
        dot.setAttribute("visibility", place == null ? "hidden" : "visible");
        if (place != null) dot.setAttribute("transform", `translate(${x(place)} ${y(values[place])})`);
      };
      mark();
    });
  }
  const extremes = (values) => values.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);

  function paint() {
    if (!measure || group < 0 || !data.steps[step].groups[group]) return inform();
    measureSelect.value = measure.key;
    const most = limit();
    let missing = false;
    data.steps[step].groups[group].answers.forEach((answer, k) => {
      const values = measured(answer, measure);
      missing ||= !values;
      cards[k].spans.forEach((span, i) => (span.style.backgroundColor = values ? background(values[i], most) : ""));
    });
    const gradient = measure.signed ? `rgb(var(--neg) / .72), transparent, rgb(var(--pos) / .72)` : `transparent, rgb(var(--seq) / .72)`;
    scale.replaceChildren(...(missing ? ["not recorded at this step"] : [
      measure.signed ? `≤ ${number(-most)}` : "0", el("i", { style: `background:linear-gradient(90deg, ${gradient})` }), `≥ ${measure.signed ? signed(most) : number(most)}`]));
    inform();
  }
  function choose(k, i, scroll) {
    if (chosen) cards[chosen.answer]?.spans[chosen.token]?.classList.remove("on");
    chosen = { answer: k, token: i };
    const span = cards[k]?.spans[i];
    if (!span) return;
    span.classList.add("on");
    if (scroll) {
      const box = cards[k].body;
      if (span.offsetTop < box.scrollTop + box.offsetTop || span.offsetTop > box.scrollTop + box.offsetTop + box.clientHeight - 20) span.scrollIntoView({ block: "nearest" });
    }
    cards.forEach((one, n) => one.sum.point?.(n === k ? i : null));
    inform();
  }
  function inform() {
    if (!chosen) return inspect.replaceChildren(el("span", { class: "note" }, "No token chosen."));
    const answer = data.steps[step].groups[group].answers[chosen.answer];
    const i = chosen.token;
    const running = cards[chosen.answer].running;
    inspect.replaceChildren(
      el("span", {}, `Token ${i + 1} of answer ${chosen.answer + 1} `, el("code", {}, shape(answer.texts[i])), answer.texts[i] === "" ? " part of a character" : null),
      ...used.map((one) => [one, measured(answer, one)]).filter(([, values]) => values).map(([one, values]) =>
        el("span", { class: one === measure ? "chosen" : null }, `${one.label} `, el("b", {}, one.signed ? signed(values[i]) : number(values[i])))),
      running ? el("span", {}, "Sum to here ", el("b", {}, signed(running.values[i]))) : null);
  }

  function listSurprising() {
    const surprise = MEASURES.find((one) => one.key === "surprise");
    const list = [];
    data.steps[step].groups.forEach((one, g) => one.answers.forEach((answer, k) => {
      measured(answer, surprise)?.forEach((value, i) => Number.isFinite(value) && list.push({ value, g, k, i, answer }));
    }));
    list.sort((a, b) => b.value - a.value);
    const items = list.slice(0, 20).map(({ value, g, k, i, answer }) =>
      el("li", {}, el("button", { type: "button", onclick: () => { outcomeSelect.value = "any"; go(step, g, { answer: k, token: i }); answers.scrollIntoView({ block: "nearest" }); } },
        el("span", { class: "n" }, `probability ${number(Math.exp(-value))}`),
        el("code", {}, short(answer.texts.slice(Math.max(0, i - 8), i).join(""), 40), el("mark", {}, shape(answer.texts[i]))))));
    surprising.replaceChildren(surprising.firstElementChild, items.length ? el("ul", { class: "list" }, ...items) : el("p", { class: "note" }, "No log-probabilities were recorded."));
  }

  function search() {
    found = query.value.toLowerCase();
    const places = [];
    let count = 0;
    if (found) {
      data.steps.forEach((one, s) => {
        if (scope.value === "one" && s !== step) return;
        one.groups.forEach((g, gi) => {
          if (!passes(g)) return;
          [g.prompt, ...g.answers.map(text)].forEach((whole, k) => {
            const at = whole.toLowerCase().indexOf(found);
            if (at < 0) return;
            count++;
            if (places.length < 40) places.push({ s, gi, k: k - 1, whole, at });
          });
        });
      });
    }
    results.replaceChildren();
    if (found) {
      results.append(el("p", { class: "note" }, count === 0 ? "Nothing found." : `${count} found${count > places.length ? `, the first ${places.length} listed` : ""}.`));
      results.append(el("ul", { class: "list" }, ...places.map(({ s, gi, k, whole, at }) =>
        el("li", {}, el("button", { type: "button", onclick: () => go(s, gi, k < 0 ? null : { answer: k, token: tokenAt(data.steps[s].groups[gi].answers[k], at) }) },
          el("span", { class: "n" }, `${data.steps[s].label}${k < 0 ? ", prompt" : `, answer ${k + 1}`}`),
          el("code", {}, whole.slice(Math.max(0, at - 16), at), el("mark", {}, whole.slice(at, at + found.length)), whole.slice(at + found.length, at + found.length + 24)))))));
    }
    show();
  }
  function tokenAt(answer, at) {
    let place = 0;
    for (const [i, t] of unpacked(answer).texts.entries()) {
      place += t.length;
      if (place > at) return i;
    }
    return 0;
  }

  if (data.steps.length === 0) return root.replaceChildren(el("p", { class: "note" }, "There are none."));
  go(Math.min(data.first ?? 0, data.steps.length - 1), 0);
  listSurprising();
}
