// One latent: what it is, its contexts, and the tokens in them. The panels beside the contexts are in panels.js.

const lines = new WeakMap(); // a context's element -> what the tooltip says of its tokens

function drawLatent(summary, { vocabulary }, one, list) {
  const row = list.row.get(one.latent);
  const head = [heading(summary, row, one, list)];
  const added = panels.map((panel) => panel(one, summary)).filter(Boolean);
  const always = [lens(summary, vocabulary, one), directions(summary, list, one), ...added];
  if (!one.firings) {
    return [...head, h("p.empty", "It never fires on this store: a dead latent."), h("div.rail", always)];
  }
  const firing = [distribution(one), always.shift(), uses(vocabulary, one), partners(summary, list, one)];
  return [...head, contextsOf(vocabulary, one, list), h("div.rail", firing, always)];
}

function heading(summary, row, one, list) {
  const step = (words, key, sign, latent) =>
    latent === null
      ? h("a.step", { "aria-disabled": "true", "aria-label": words }, sign)
      : h("a.step", { href: `#/latent/${latent}`, "aria-label": words, title: `${words} (${key})` }, sign);
  const steps = h(
    "span.steps",
    step("previous latent", "k", "↑", list.beside(-1)),
    step("next latent", "j", "↓", list.beside(1)),
    h("a.step.close", { href: "#/", "aria-label": "all latents", title: "all latents (Esc)" }, "✕"),
  );
  const explanation = summary.columns.explanation[row], score = summary.columns.score[row];
  const parts = [h("h1", { tabindex: -1 }, "Latent ", h("b", one.latent)), steps];
  if (explanation) {
    const scored = h("small", { title: "balanced accuracy, .5 is chance" }, ` ${fraction(score)}`);
    parts.push(h("p.explanation", visible(explanation), score !== null && scored));
  }
  if (one.firings) parts.push(h("p.facts", facts(summary, row, one)));
  return h("header.head", parts);
}

function facts(summary, row, one) {
  const same = summary.columns.same[row];
  const fact = (label, value, note) => h("span", h("b", value), ` ${label}`, note ? h("small", ` ${note}`) : null);
  return [
    fact("of tokens", percent(one.firings / summary.rows), whole(one.firings)),
    fact("maximum", figure(one.maximum)),
    fact("mean where it fires", figure(one.mean)),
    same ? fact("peak on one token", `${same}/${summary.top}`) : null,
    one.firings > summary.dense * summary.rows ? h("span.tag", "dense") : null,
  ];
}

function contextsOf(vocabulary, one, list) {
  const drawn = (several) => several.map((context) => contextLine(context, vocabulary, one.maximum, list.pattern));
  const fifths = ["Strongest", "Second", "Middle", "Fourth", "Weakest"];
  const name = (i) => (one.quantiles.length === 5 ? `${fifths[i]} fifth` : `Part ${i + 1} of ${one.quantiles.length}`);
  const part = (title, note, several, button) => h("section", h("h2", title, h("small", note), button), drawn(several));
  const button = h("button.wrap", { type: "button", title: "One line to a context, or all of its text (w)" }, "wrap");
  const contexts = h(
    "div.contexts",
    part("Top contexts", "each from another sequence", one.top, button),
    one.quantiles.map((several, i) => part(name(i), "drawn evenly from its firings", several)),
  );
  const wrap = (on) => {
    contexts.classList.toggle("wrapped", on);
    button.setAttribute("aria-pressed", String(on));
    remember("wrap", on ? "yes" : "no");
  };
  wrap(remembered("wrap") === "yes");
  button.addEventListener("click", () => wrap(!contexts.classList.contains("wrapped")));
  return contexts;
}

// A context on one line, its peak in the same place on every line; or wrapped. What `pattern` finds is marked.
function contextLine(context, vocabulary, maximum, pattern = null) {
  const fires = new Map(context.fires), peak = fires.get(context.peak) ?? 0;
  const texts = context.tokens.map((number) => vocabulary.text[number]);
  const found = pattern ? holding(texts, pattern) : new Set();
  const spans = texts.map((text, i) => {
    const value = fires.get(i) ?? 0;
    const token = h("span.t", { "data-i": i }, visible(text));
    if (vocabulary.cut[context.tokens[i]]) token.append(h("i.sign", "…"));
    token.classList.toggle("peak", i === context.peak);
    token.classList.toggle("found", found.has(i));
    if (value) {
      shade(token, value / maximum);
      // An empty piece is a part of a character, which the token that completes it shows.
      if (!text) token.append(h("i.sign", "·"));
    }
    return token;
  });
  const before = spans.splice(0, context.peak);
  const on = texts[context.peak].trim() || "a part of a character";
  const line = h(
    "div.context",
    { tabindex: 0, role: "group", "aria-label": `activation ${figure(peak)} on ${on}` },
    h("span.value", figure(peak)),
    h("span.text", h("span.before", h("span", before)), h("span.after", spans)),
  );
  lines.set(line, { context, vocabulary, maximum, fires });
  return line;
}

// The tokens that hold what was searched for.
function holding(texts, pattern) {
  const found = new Set();
  for (const { index, 0: hit } of texts.join("").matchAll(new RegExp(pattern, "giu"))) {
    let start = 0;
    texts.forEach((text, i) => {
      if (start < index + hit.length && start + text.length > index) found.add(i);
      start += text.length;
    });
  }
  return found;
}

// What the tooltip says of token i of a context's line.
function tokenWords(line, i) {
  const { context, vocabulary, maximum, fires } = lines.get(line);
  const number = context.tokens[i], text = vocabulary.text[number], value = fires.get(i), cut = vocabulary.cut[number];
  const place = `position ${whole(context.position - context.peak + i)} of sequence ${whole(context.sequence)}`;
  return [
    h("b", text ? chip(text) : "part of a character"),
    h("span", value ? [h("b", figure(value)), ` ${percent(value / maximum)} of the maximum`] : "silent"),
    h("small", `token ${vocabulary.ids[number]}${cut ? `, ${whole(cut)} characters` : ""} · ${place}`),
  ];
}
