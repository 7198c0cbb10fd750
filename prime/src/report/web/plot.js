// Line plots over steps: several series, bands, smoothing, one zoom and one cursor for all charts of a block.

const HEIGHT = 170;
const FEW = 20;
const EDGE = { left: 46, right: 8, top: 8, bottom: 20 };

/** Exponential smoothing that does not begin at zero. */
function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

function line(xs, ys, x, y) {
  let path = "";
  let pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] == null) {
      pen = "M";
      continue;
    }
    path += `${pen}${x(xs[i]).toFixed(1)},${y(ys[i]).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

function area(xs, low, high, x, y) {
  const known = [...xs.keys()].filter((i) => low[i] != null && high[i] != null);
  if (known.length === 0) return "";
  const there = known.map((i) => `${x(xs[i]).toFixed(1)},${y(high[i]).toFixed(1)}`);
  const back = known.reverse().map((i) => `${x(xs[i]).toFixed(1)},${y(low[i]).toFixed(1)}`);
  return `M${there.join("L")}L${back.join("L")}Z`;
}

/** Axes and gridlines; returns the scales. */
function axes(target, width, height, [x0, x1], [y0, y1]) {
  const right = width - EDGE.right;
  const bottom = height - EDGE.bottom;
  const x = (value) => EDGE.left + ((value - x0) / (x1 - x0 || 1)) * (right - EDGE.left);
  const y = (value) => bottom - ((value - y0) / (y1 - y0 || 1)) * (bottom - EDGE.top);
  for (const value of ticks(y0, y1, 4)) {
    target.append(svg("line", { class: "grid", x1: EDGE.left, x2: right, y1: y(value), y2: y(value) }));
    target.append(svg("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const value of ticks(x0, x1, Math.min(6, width / 80)).filter((value) => Number.isInteger(value))) {
    target.append(svg("text", { x: x(value), y: height - 4, "text-anchor": "middle" }, number(value)));
  }
  x.back = (pixel) => x0 + ((pixel - EDGE.left) / (right - EDGE.left)) * (x1 - x0);
  return { x, y };
}

/** Lets a pointer and the keyboard move a cursor and choose a range of x. */
function interact(node, { toX, pixelToX, points, range, zoom, move }) {
  let from = null;
  let box = null;
  const at = (event) => event.clientX - node.getBoundingClientRect().left;
  node.addEventListener("pointerdown", (event) => {
    from = at(event);
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointermove", (event) => {
    const here = at(event);
    move(pixelToX(here));
    if (from == null || Math.abs(here - from) < 8) return;
    box ??= node.appendChild(svg("rect", { class: "select", y: EDGE.top, height: HEIGHT - EDGE.top - EDGE.bottom }));
    box.setAttribute("x", Math.min(from, here));
    box.setAttribute("width", Math.abs(here - from));
  });
  node.addEventListener("pointerup", (event) => {
    const here = at(event);
    box?.remove();
    box = null;
    if (from != null && Math.abs(here - from) >= 8) zoom([pixelToX(from), pixelToX(here)].sort((a, b) => a - b));
    else move(pixelToX(here));
    from = null;
  });
  node.addEventListener("pointercancel", () => {
    box?.remove();
    box = from = null;
  });
  node.addEventListener("pointerleave", () => from == null && move(null));
  node.addEventListener("dblclick", () => zoom(null));
  node.addEventListener("blur", () => move(null));
  node.addEventListener("keydown", (event) => {
    const list = points();
    if (list.length === 0) return;
    const [low, high] = range();
    const now = toX() ?? (low + high) / 2;
    const place = nearest(list, now);
    const step = event.shiftKey ? Math.max(1, Math.round(list.length / 20)) : 1;
    const half = (high - low) / 2;
    const keys = {
      ArrowLeft: () => move(list[Math.max(0, place - step)]),
      ArrowRight: () => move(list[Math.min(list.length - 1, place + step)]),
      Home: () => move(list[0]),
      End: () => move(list[list.length - 1]),
      "+": () => zoom([now - half / 2, now + half / 2]),
      "-": () => zoom([now - half * 2, now + half * 2]),
      Escape: () => zoom(null),
    };
    const act = keys[event.key === "=" ? "+" : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** A block of charts. */
function plots(root, data) {
  const hidden = new Set();
  const charts = [];
  let weight = data.smoothing;
  let zoomed = null;
  let cursor = null;
  const extent = data.axes.reduce(([a, b], xs) => [Math.min(a, xs[0]), Math.max(b, xs[xs.length - 1])], [Infinity, -Infinity]);
  const range = () => zoomed ?? (extent[0] < extent[1] ? extent : [extent[0] - 0.5, extent[1] + 0.5]);
  const redraw = () => charts.forEach((chart) => chart.draw());
  const move = (x) => {
    cursor = x;
    charts.forEach((chart) => chart.point());
  };
  const reset = el("button", { type: "button", disabled: true, onclick: () => zoom(null) }, "Show all steps");
  const zoom = (wanted) => {
    const within = wanted && [Math.max(extent[0], wanted[0]), Math.min(extent[1], wanted[1])];
    zoomed = within && within[1] - within[0] > 0 && (within[0] > extent[0] || within[1] < extent[1]) ? within : null;
    reset.disabled = zoomed == null;
    redraw();
  };

  const value = el("output", {}, weight.toFixed(2));
  const slider = el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: weight, oninput: () => {
    weight = Number(slider.value);
    value.textContent = weight.toFixed(2);
    redraw();
  } });
  const find = el("input", { type: "search", placeholder: "name of a metric", oninput: () => {
    const wanted = find.value.trim().toLowerCase();
    charts.forEach((chart) => (chart.figure.hidden = !chart.title.toLowerCase().includes(wanted)));
    root.querySelectorAll("details").forEach((group) => {
      const some = [...group.querySelectorAll("figure")].some((figure) => !figure.hidden);
      group.hidden = !some;
      if (wanted && some) group.open = true;
    });
  } });
  if (data.names.length > 1 || data.names[0]?.note) {
    root.append(el("div", { class: "legend" }, ...data.names.map((name, i) => {
      const box = el("input", { type: "checkbox", checked: true, onchange: () => {
        if (box.checked) hidden.delete(i);
        else hidden.add(i);
        redraw();
      } });
      return el("label", {}, box, " ", el("span", { class: "swatch", style: `background:${color(i)}` }), " ", name.label, name.note ? el("span", { class: "note" }, ` ${name.note}`) : null);
    })));
  }
  root.append(el("div", { class: "controls" },
    el("label", {}, "Smoothing ", slider, value), reset,
    data.charts.length > 8 ? el("label", { class: "grow" }, "Find ", find) : null));
  root.append(el("p", { class: "hint" }, "Drag across a chart to zoom in, double-click to zoom out. With the keyboard: arrows move the cursor, + and − zoom, Escape shows all. Curves of fewer than 20 points are not smoothed."));

  const groups = new Map();
  for (const spec of data.charts) {
    if (!groups.has(spec.group)) {
      const grid = el("div", { class: "charts" });
      root.append(spec.group ? el("details", {}, el("summary", {}, spec.group), grid) : grid);
      groups.set(spec.group, grid);
    }
    groups.get(spec.group).append(makeChart(spec));
  }

  function makeChart(spec) {
    const out = el("output");
    const picture = svg("svg", { tabindex: 0, role: "img", height: HEIGHT, "aria-label": `${spec.title} over steps` });
    const figure = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, spec.title), out), picture);
    let width = 0;
    let scales = null;
    const lines = [];
    const shown = () => spec.series.filter((one) => !hidden.has(one.name));
    function draw() {
      if (width === 0) return;
      picture.replaceChildren();
      picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      const [x0, x1] = range();
      let low = Infinity;
      let high = -Infinity;
      const parts = shown().map((one) => {
        const xs = data.axes[one.axis];
        // A few points are seen better as they are.
        const strength = xs.length < FEW ? 0 : weight;
        let first = 0;
        let last = xs.length - 1;
        while (first < last && xs[first + 1] <= x0) first++;
        while (last > first && xs[last - 1] >= x1) last--;
        const cut = (ys) => ys && smoothed(ys, strength).slice(first, last + 1);
        const part = { one, first, strength, xs: xs.slice(first, last + 1), ys: one.y.slice(first, last + 1), smooth: smoothed(one.y, strength).slice(first, last + 1), low: cut(one.low), high: cut(one.high) };
        for (const value of [...part.ys, ...(part.low ?? []), ...(part.high ?? [])]) {
          if (value == null) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
        return part;
      });
      if (low > high) [low, high] = [0, 1];
      const room = (high - low || Math.abs(high) || 1) * 0.05;
      scales = axes(picture, width, HEIGHT, [x0, x1], [low - room, high + room]);
      lines.length = 0;
      const id = `clip${(plots.count = (plots.count ?? 0) + 1)}`;
      const body = svg("g", { "clip-path": `url(#${id})` });
      picture.append(svg("clipPath", { id }, svg("rect", { x: EDGE.left, y: 0, width: Math.max(0, width - EDGE.left - EDGE.right + 4), height: HEIGHT - EDGE.bottom + 4 })), body);
      for (const part of parts) {
        const stroke = color(part.one.name);
        if (part.low) body.append(svg("path", { class: "band", style: `fill:${stroke}`, d: area(part.xs, part.low, part.high, scales.x, scales.y) }));
        if (part.strength > 0 && !part.low) body.append(svg("path", { class: "raw", style: `stroke:${stroke}`, d: line(part.xs, part.ys, scales.x, scales.y) }));
        body.append(svg("path", { class: "smooth", style: `stroke:${stroke}`, d: line(part.xs, part.smooth, scales.x, scales.y) }));
        const alone = part.ys.filter((y) => y != null).length < FEW;
        part.xs.forEach((x, i) => {
          if (alone && part.smooth[i] != null) body.append(svg("circle", { cx: scales.x(x), cy: scales.y(part.smooth[i]), r: 2.2, style: `fill:${stroke}` }));
        });
        lines.push(part);
      }
      point();
    }
    let mark = null;
    function point() {
      mark?.remove();
      mark = null;
      if (!scales || width === 0) return;
      if (cursor == null) {
        const last = lines[0] && lines.length === 1 ? lines[0].ys.findLast((y) => y != null) : null;
        out.textContent = last == null ? "" : `last ${number(last)}`;
        return;
      }
      const at = lines.map((part) => ({ part, i: nearest(part.xs, cursor) })).filter(({ part }) => part.xs.length);
      if (at.length === 0) return;
      const x = scales.x(at[0].part.xs[at[0].i]);
      if (x >= EDGE.left - 1 && x <= width) {
        mark = picture.appendChild(svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      }
      out.replaceChildren(`step ${number(at[0].part.xs[at[0].i])}: `, ...at.flatMap(({ part, i }, k) => {
        const { low: lows, high: highs } = part.one;
        const band = lows ? ` (${number(lows[part.first + i])} to ${number(highs[part.first + i])})` : "";
        return [k ? " · " : "", el("span", { style: `color:${color(part.one.name)}` }, number(part.ys[i]) + band)];
      }));
    }
    onWidth(figure, (now) => {
      width = now;
      draw();
    });
    interact(picture, { toX: () => cursor, pixelToX: (pixel) => scales.x.back(pixel), points: () => lines[0]?.xs ?? [], range, zoom, move });
    charts.push({ figure, title: spec.title, draw, point });
    return figure;
  }
}
