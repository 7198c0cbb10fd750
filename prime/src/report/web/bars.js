// Values with their intervals, a row each.

function bars(root, data) {
  const picture = svg("svg", { role: "img", "aria-label": data.title });
  const figure = el("figure", { class: "wide" }, el("figcaption", {}, el("b", {}, data.title), el("output", {}, data.unit)), picture);
  root.append(figure);
  const row = 26;
  onWidth(figure, (width) => {
    picture.replaceChildren();
    const height = data.rows.length * row + EDGE.bottom + 4;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("height", height);
    picture.setAttribute("width", width);
    const longest = Math.max(...data.rows.map((one) => one.label.length), 1);
    const left = Math.min(width * 0.45, 8 + longest * 6.6);
    const right = width - 96;
    const values = data.rows.flatMap((one) => [one.value, one.low, one.high]).filter((x) => x != null);
    const low = Math.min(0, ...values);
    const high = Math.max(0, ...values);
    const x = (value) => left + ((value - low) / (high - low || 1)) * (right - left);
    for (const value of ticks(low, high || low + 1, Math.max(2, (right - left) / 90))) {
      picture.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 0, y2: height - EDGE.bottom }));
      picture.append(svg("text", { x: x(value), y: height - 5, "text-anchor": "middle" }, number(value)));
    }
    data.rows.forEach((one, i) => {
      const y = i * row + 4;
      const most = Math.max(4, Math.floor((left - 8) / 6.2));
      const label = one.label.length > most ? one.label.slice(0, most - 1) + "…" : one.label;
      picture.append(svg("text", { x: left - 8, y: y + 13, "text-anchor": "end", style: "fill:var(--ink)" }, svg("title", {}, one.label), label));
      if (one.value == null) return;
      picture.append(svg("rect", { x: Math.min(x(0), x(one.value)), width: Math.max(1, Math.abs(x(one.value) - x(0))), y: y + 2, height: row - 12, style: `fill:${one.value < 0 ? "rgb(var(--neg))" : "rgb(var(--pos))"}`, opacity: 0.6 }));
      if (one.low != null && one.high != null) {
        const middle = y + 2 + (row - 12) / 2;
        picture.append(svg("path", { d: `M${x(one.low)},${middle - 4}v8M${x(one.low)},${middle}H${x(one.high)}M${x(one.high)},${middle - 4}v8`, style: "stroke:var(--ink);fill:none" }));
      }
      picture.append(svg("text", { x: right + 8, y: y + 13 }, number(one.value)));
    });
  });
}
