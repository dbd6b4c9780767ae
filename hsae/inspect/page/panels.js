// Beside the contexts: what else the index says of a latent.

const panels = []; // (latent, summary) => element or null: more panels, by scripts that come after this one

function panel(title, note, ...children) {
  return h("section.panel", h("h2", title, note ? h("small", note) : null), children);
}

function distribution(one) {
  const place = h("div");
  const button = h("button", { type: "button", title: "Heights by the logarithm of the count" }, "log");
  const draw = (logarithmic) => {
    place.replaceChildren(histogram(one.histogram, one.bin, logarithmic));
    button.setAttribute("aria-pressed", String(logarithmic));
    remember("log", logarithmic ? "yes" : "no");
  };
  button.addEventListener("click", () => draw(button.getAttribute("aria-pressed") === "false"));
  draw(remembered("log") === "yes");
  const drawn = panel("Activation", "tokens by activation, where it fires", place);
  drawn.firstChild.append(button);
  return drawn;
}

const tokenName = (vocabulary, number) =>
  h("th", { scope: "row" }, chip(vocabulary.text[number], vocabulary.cut[number]));

function lens(summary, vocabulary, one) {
  if (summary.no_logits !== null) {
    return panel("Logit lens", "", h("p.empty", "None in this index: ", visible(summary.no_logits)));
  }
  const most = Math.max(...[...one.promoted, ...one.suppressed].map(([, logit]) => Math.abs(logit)), 1e-12);
  const line = (kind) => ([number, logit]) =>
    h(
      "tr",
      tokenName(vocabulary, number),
      h("td.drawn", bar(Math.abs(logit) / most, kind)),
      h("td.number", logit.toFixed(2).replace("-", "−")),
    );
  const half = (title, kind, tokens) => h("table.bars", h("caption", title), h("tbody", tokens.map(line(kind))));
  const pair = h("div.pair", half("promotes", "up", one.promoted), half("suppresses", "down", one.suppressed));
  return panel("Logit lens", "what its direction adds to each token's logit", pair);
}

function uses(vocabulary, one) {
  const shown = 10;
  const most = Math.max(...one.tokens.map(([, , share]) => share), 1e-12);
  const rows = one.tokens.map(([number, firings, share, occurrences], i) =>
    h(
      i < shown ? "tr" : "tr.more",
      tokenName(vocabulary, number),
      h("td.drawn", bar(share / most)),
      h("td.number", percent(share)),
      h("td.number", { title: `${whole(firings)} of ${whole(occurrences)}` }, percent(firings / occurrences)),
    ),
  );
  const heads = [
    h("th", { scope: "col", title: "its share of all the latent's activation" }, "share"),
    h("th", { scope: "col", title: "how many of the token's occurrences it fires on" }, "of its own"),
  ];
  const table = h("table.bars", h("thead", h("tr", h("td"), h("td"), heads)), h("tbody", rows));
  const note = one.doubt >= 0.001 ? `a listed one may lack up to ${percent(one.doubt)}` : "it fires on most";
  const found = panel("Tokens", note, table);
  if (rows.length > shown) {
    const all = h("button.all", { type: "button" }, `all ${rows.length}`);
    all.addEventListener("click", () => (table.classList.add("open"), all.remove()));
    found.append(all);
  }
  return found;
}

// A latent in a list: a link where it is in this page, and what it is about.
function mention(summary, list, latent, share, title = null) {
  const { columns } = summary, row = list.row.get(latent);
  let about = h("em", "not in this page"), name = latent;
  if (row !== undefined) {
    name = h("a", { href: `#/latent/${latent}` }, latent);
    const tokens = columns.tokens[row].slice(0, 4).map((text) => chip(text));
    about = tokens.length ? h("div.chips", tokens) : h("em", "dead");
    if (columns.explanation[row]) about = visible(columns.explanation[row]);
  }
  const cells = [h("td.about", about), h("td.drawn", bar(share)), h("td.number", fraction(share))];
  return h("tr", { title }, h("th", { scope: "row" }, name), cells);
}

function partners(summary, list, one) {
  const rows = one.coactive.map(([latent, phi, share]) =>
    mention(summary, list, latent, phi, `fires on ${percent(share)} of this one's tokens`),
  );
  return panel("Fires together with", "correlation of firing", latentTable(rows));
}

function directions(summary, list, one) {
  const rows = one.near.map(([latent, cosine]) => mention(summary, list, latent, cosine));
  return panel("Nearest directions", "cosine of decoder rows", latentTable(rows));
}

const latentTable = (rows) =>
  rows.length ? h("table.bars.latents", h("tbody", rows)) : h("p.empty", "No other latent.");
