// Parts of a whole over steps, one upon the other.

function stack(root, data) {
  const out = el("output");
  const picture = svg("svg", { tabindex: 0, role: "img", height: HEIGHT, "aria-label": `${data.title} over steps` });
  const figure = el("figure", { class: "chart wide" }, el("figcaption", {}, el("b", {}, data.title), out), picture);
  root.append(el("div", { class: "legend" }, ...data.parts.map((part) =>
    el("span", {}, el("span", { class: "swatch block", style: `background:${color(part.color)}` }), ` ${part.label}`))), figure);
  const all = [data.x[0], data.x[data.x.length - 1]];
  const whole = all[0] < all[1] ? all : [all[0] - 0.5, all[1] + 0.5];
  let zoomed = null;
  let cursor = null;
  let width = 0;
  let scales = null;
  let mark = null;
  const range = () => zoomed ?? whole;

  function draw() {
    if (width === 0) return;
    picture.replaceChildren();
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const [x0, x1] = range();
    const inside = [...data.x.keys()].filter((i) => data.x[i] >= x0 && data.x[i] <= x1);
    const total = (i) => data.parts.reduce((sum, part) => sum + (part.y[i] ?? 0), 0);
    const top = Math.max(...inside.map(total), 1e-12);
    scales = axes(picture, width, HEIGHT, [x0, x1], [0, top * 1.03]);
    const xs = inside.map((i) => data.x[i]);
    let floor = xs.map(() => 0);
    data.parts.forEach((part) => {
      const ceiling = inside.map((i, n) => floor[n] + (part.y[i] ?? 0));
      if (xs.length === 1) {
        const x = scales.x(xs[0]);
        picture.append(svg("rect", { x: x - 20, width: 40, y: scales.y(ceiling[0]), height: scales.y(floor[0]) - scales.y(ceiling[0]), style: `fill:${color(part.color)}`, opacity: 0.75 }));
      } else {
        picture.append(svg("path", { style: `fill:${color(part.color)}`, opacity: 0.75, d: area(xs, floor, ceiling, scales.x, scales.y) }));
      }
      floor = ceiling;
    });
    point();
  }
  function point() {
    mark?.remove();
    mark = null;
    if (cursor == null || !scales) {
      out.textContent = data.unit;
      return;
    }
    const i = nearest(data.x, cursor);
    const x = scales.x(data.x[i]);
    mark = picture.appendChild(svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    out.replaceChildren(`step ${number(data.x[i])}: `, ...data.parts.flatMap((part, k) => [k ? " · " : "", el("span", {}, `${part.label} ${number(part.y[i])}`)]));
  }
  onWidth(figure, (now) => {
    width = now;
    draw();
  });
  interact(picture, {
    toX: () => cursor,
    pixelToX: (pixel) => scales.x.back(pixel),
    points: () => data.x,
    range,
    zoom: (wanted) => {
      const within = wanted && [Math.max(whole[0], wanted[0]), Math.min(whole[1], wanted[1])];
      const count = within ? data.x.filter((x) => x >= within[0] && x <= within[1]).length : 0;
      zoomed = count > 1 && count < data.x.length ? within : null;
      draw();
    },
    move: (x) => {
      cursor = x;
      point();
    },
  });
}
