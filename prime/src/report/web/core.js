// What every block of the page uses: elements, numbers, and the page's compact columns.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Texts become text nodes: nothing here is ever parsed as HTML. */
function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** A number for people: five significant digits, a true minus sign. */
function number(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e6 || size < 1e-4) ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  return text.replace("-", "−");
}

function signed(value) {
  return value > 0 ? "+" + number(value) : number(value);
}

const DIGIT = new Map([..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].map((c, i) => [c.charCodeAt(0), i]));

/** Whole numbers of three bytes, four characters each. */
function integers(text) {
  const out = new Uint32Array(text.length / 4);
  for (let i = 0; i < out.length; i++) {
    let value = 0;
    for (let k = 0; k < 4; k++) value = value * 64 + DIGIT.get(text.charCodeAt(4 * i + k));
    out[i] = value;
  }
  return out;
}

/** Floats without their last eight bits. */
function floats(text) {
  const bits = integers(text);
  for (let i = 0; i < bits.length; i++) bits[i] = bits[i] * 256;
  return new Float32Array(bits.buffer);
}

/** Round values that cut low..high into about `count` parts. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6 && out.length < 50; value += step) {
    out.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  }
  return out;
}

/** The place of the value nearest to x in a rising list. */
function nearest(list, x) {
  let low = 0;
  let high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - list[low - 1] < list[low] - x ? low - 1 : low;
}

/** Calls back with the width of an element whenever it is shown or changes. */
function onWidth(node, draw) {
  let last = 0;
  const look = () => {
    const width = Math.round(node.clientWidth);
    if (width > 0 && width !== last) draw((last = width));
  };
  // Not within the observer's own round: what is drawn may change the height of what it watches.
  new ResizeObserver(() => setTimeout(look)).observe(node);
  look();
}

const color = (index) => `var(--s${index % 7})`;
