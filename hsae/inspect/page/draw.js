// Elements, numbers and small drawings. Text enters the page as text nodes only, so no context can become markup.

// An element: h("tag.class", {attribute: value, onclick: function}, child, …). The attributes may be left out; a
// value or a child that is null, undefined or false is none.
function h(kind, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  const none = (value) => value === null || value === undefined || value === false;
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (!none(value)) element.setAttribute(name, value === true ? "" : value);
  }
  element.classList.add(...classes);
  element.append(...children.flat().filter((child) => !none(child)));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Numbers, as the terminal writes them.

const NONE = "–";
const whole = (n) => (n === null || n === undefined ? NONE : n.toLocaleString("en"));

function scientific(value) {
  if (value === null || value === undefined) return NONE;
  const [mantissa, exponent] = value.toExponential(1).split("e");
  return `${mantissa}e${Number(exponent)}`;
}

function fraction(value) {
  if (value === null || value === undefined) return NONE;
  if (Math.abs(value) >= 999.5) return scientific(value);
  return Math.abs(value) < 0.9995 ? value.toFixed(3).replace("0.", ".") : String(Number(value.toPrecision(3)));
}

function figure(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return scientific(value);
  return size >= 999.5 ? whole(Math.round(value)) : value.toPrecision(3);
}

function percent(share) {
  const value = 100 * share;
  if (value && value < 0.001) return "<.001%";
  return `${value.toFixed(!value || value >= 99.95 ? 0 : value >= 10 ? 1 : value >= 0.1 ? 2 : 3)}%`;
}

// Text. What moves the cursor, turns the direction of writing or cannot be seen is written as an escape.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

function visible(text, spaces = false) {
  if (!UNSEEN.test(text) && !(spaces && text.includes(" "))) return [text];
  const nodes = [""];
  for (const c of text) {
    let shown = null;
    if (c === "\n") shown = "⏎";
    else if (spaces && c === " ") shown = "␣";
    else if (UNSEEN.test(c)) shown = escaped(c);
    if (shown === null) nodes[nodes.length - 1] += c;
    else nodes.push(h("i.sign", shown), "");
  }
  return nodes.filter((node) => node !== "");
}

function escaped(c) {
  const code = c.codePointAt(0).toString(16);
  if (code.length > 4) return `\\u{${code}}`;
  return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
}

// One token by itself, on a chip: spaces are signs, long ones are cut.
function chip(text, length = 0) {
  const shown = text.length > 24 ? [...visible(text.slice(0, 24), true), "…"] : visible(text, true);
  const title = length ? `a token of ${whole(length)} characters` : text.length > 24 ? text : null;
  return h("bdi.chip", { title }, shown);
}

// Shade a token (class t) by its activation over the maximum; 0 takes the shade away.
function shade(token, share) {
  const strength = Math.min(share, 1);
  token.classList.toggle("on", strength > 0);
  token.classList.toggle("strong", strength > 0.59); // On this, black is easier to read than white, in the dark too.
  token.style.setProperty("--s", strength.toFixed(3));
}

// Drawings.

function bar(share, kind = "") {
  const inner = h("span.fill");
  if (kind) inner.classList.add(kind);
  inner.style.width = `${(100 * Math.max(0, Math.min(1, share))).toFixed(1)}%`;
  return h("span.bar", { "aria-hidden": "true" }, inner);
}

// A histogram a few pixels high, of base-36 digits.
function sketch(digits) {
  const across = 64, high = 18, step = across / Math.max(digits.length, 16);
  let path = "";
  [...digits].forEach((digit, i) => {
    const tall = Math.max((parseInt(digit, 36) / 35) * (high - 1), 1);
    const [x, wide] = [i * step, step * 0.86].map((n) => n.toFixed(1));
    if (digit !== "0") path += `M${x} ${high}v${-tall.toFixed(1)}h${wide}V${high}z`;
  });
  const drawn = svg("path", { d: path });
  return svg("svg", { class: "sketch", viewBox: `0 0 ${across} ${high}`, "aria-hidden": "true" }, drawn);
}

// Counts of activations: bin i ends at (i + 1) · width.
function histogram(counts, width, logarithmic) {
  const across = 320, high = 96, left = 38, bottom = 16, top = 8;
  const room = high - bottom - top, step = (across - left) / counts.length, last = counts.length * width;
  const most = Math.max(...counts), scale = (n) => (logarithmic ? Math.log1p(n) / Math.log1p(most) : n / most);
  const bins = `${counts.length} bins of ${figure(width)}`;
  const words = `Activation where it fires: ${whole(most)} tokens in the fullest of ${bins}`;
  const drawn = svg("svg", { class: "histogram", viewBox: `0 0 ${across} ${high}`, role: "img", "aria-label": words });
  for (const tick of new Set([0, ...(logarithmic ? [1, 10 ** Math.round(Math.log10(most) / 2)] : []), most])) {
    const y = top + room * (1 - scale(tick));
    drawn.append(svg("line", { class: "rule", x1: left, x2: across, y1: y, y2: y }));
    drawn.append(svg("text", { x: left - 5, y: y + 3.5, "text-anchor": "end" }, whole(tick)));
  }
  counts.forEach((count, i) => {
    const tall = count ? Math.max(room * scale(count), 1) : 0, x = left + i * step;
    const bounds = svg("title", {}, `${figure(i * width)} to ${figure((i + 1) * width)}: ${whole(count)} tokens`);
    const hit = svg("rect", { class: "hit", x, y: top, width: step, height: room });
    const box = { x: x + 0.5, y: top + room - tall, width: Math.max(step - 1, 0.5), height: tall };
    drawn.append(svg("g", {}, bounds, hit, svg("rect", { class: "column", ...box })));
  });
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const x = left + share * (across - left);
    drawn.append(svg("text", { x, y: high - 3, "text-anchor": anchor }, figure(share * last)));
  }
  return drawn;
}
