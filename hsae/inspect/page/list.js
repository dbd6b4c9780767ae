// The table of latents: sorted, filtered and searched here; only the rows in sight are in the document.

const LAST = "\uffff"; // sorts behind every text
const byText = (text) => text?.trim().toLowerCase() ?? LAST;

// Of each column: its key, heading, what it sorts by (columns, row), whether the high come first, and what it is.
const COLUMNS = [
  ["latent", "latent", (c, i) => c.latent[i], false, "The number of the latent"],
  ["explanation", "explanation", (c, i) => byText(c.explanation[i]), false, "What it fires on, in words"],
  ["score", "score", (c, i) => c.score[i] ?? -1, true, "How well that tells where it fires: balanced accuracy"],
  ["tokens", "tokens", (c, i) => byText(c.tokens[i][0]), false, "The tokens that hold most of its activation"],
  ["context", "strongest context", (c, i) => byText(c.context[i]?.[1]), false, "Where it is most active; by its peak"],
  ["fires", "fires", (c, i) => c.firings[i], true, "The share of tokens on which it fires"],
  ["max", "max", (c, i) => c.maximum[i], true, "Its highest activation"],
  ["mean", "mean", (c, i) => c.mean[i], true, "Its mean activation where it fires"],
  ["same", "same", (c, i) => c.same[i], true, "How many of its strongest contexts peak on one token"],
  ["sketch", "activations", (c, i) => c.mean[i] / c.maximum[i] || -1, true, "How often it has which; by mean / max"],
];

const dense = (s, i) => s.columns.firings[i] > s.dense * s.rows;
const selective = (s, i) => s.columns.same[i] >= 0.75 * s.top && !dense(s, i);

// Of each filter: which rows it shows (summary, row), and what that means.
const FILTERS = {
  all: [() => true],
  live: [(s, i) => s.columns.firings[i] > 0],
  dead: [(s, i) => s.columns.firings[i] === 0],
  dense: [dense, (s) => `fire on more than ${percent(s.dense)} of tokens`],
  selective: [selective, (s) => `${Math.ceil(0.75 * s.top)} or more of ${s.top} strongest contexts peak on one token`],
};

class List {
  constructor(summary, place, search) {
    const { columns } = summary;
    Object.assign(this, { summary, place, search, sort: "latent", reverse: false, current: -1, turns: 0 });
    this.filter = columns.firings.some(Boolean) ? "live" : "all";
    this.count = columns.latent.length;
    this.row = new Map(columns.latent.map((latent, i) => [latent, i]));
    const spoken = columns.explanation.some((text) => text !== null);
    this.columns = COLUMNS.filter(([key]) => spoken || !["explanation", "score"].includes(key));
    this.texts = new Map(); // block -> the contexts' text of each of its latents
    this.pattern = null; // what is searched for
    this.within = new Map(); // row -> where one of its contexts holds that
    this.build();
    this.arrange();
  }

  build() {
    const { summary } = this;
    this.filters = Object.entries(FILTERS).map(([key, [test, words]]) => {
      let count = 0;
      for (let i = 0; i < this.count; i++) count += test(summary, i);
      const title = words?.(summary), onclick = () => this.show({ filter: key });
      return h("button", { type: "button", "data-filter": key, title, onclick }, key, " ", h("small", whole(count)));
    });
    const options = this.columns.map(([key, heading]) => h("option", { value: key }, `by ${heading}`));
    this.order = h("select", { "aria-label": "Sort by", onchange: () => this.sortBy(this.order.value) }, options);
    const turn = () => this.show({ reverse: !this.reverse });
    this.turn = h("button.turn", { type: "button", "aria-label": "Turn the order round", onclick: turn });
    this.said = h("p.said", { role: "status" });
    this.heads = this.columns.map(([key, heading, , , title]) => {
      const button = h("button", { type: "button", onclick: () => this.sortBy(key) }, heading);
      return h(`th.c-${key}`, { scope: "col", title }, button);
    });
    this.body = h("tbody");
    const head = h("thead", h("tr", { "aria-rowindex": 1 }, this.heads));
    this.table = h("table", { "aria-label": "Latents" }, head, this.body);
    this.none = h("p.none", "No latent matches.");
    this.scroller = h("div.scroller", { tabindex: -1 }, this.table, this.none);
    const filters = h("div.filters", { role: "group", "aria-label": "Show" }, this.filters);
    this.place.append(h("div.tools", filters, h("span.order", this.order, this.turn), this.said), this.scroller);
    this.watch();
  }

  watch() {
    let waiting = false;
    const again = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        this.paint();
      });
    };
    this.scroller.addEventListener("scroll", again, { passive: true });
    new ResizeObserver(again).observe(this.scroller);
    this.search.addEventListener("input", () => this.look());
    addEventListener("beforeprint", () => this.paint(200));
    addEventListener("afterprint", () => this.paint());
  }

  sortBy(key) {
    const [, , , high] = this.columns.find(([other]) => other === key);
    this.show({ sort: key, reverse: this.sort === key ? !this.reverse : high });
  }

  show(changes) {
    Object.assign(this, changes);
    this.arrange();
    this.scroller.scrollTop = 0;
    this.paint();
  }

  // Which rows, in which order.
  arrange() {
    const { summary } = this, { columns } = summary;
    const [, , value] = this.columns.find(([key]) => key === this.sort);
    const [test] = FILTERS[this.filter], keys = new Map();
    for (let i = 0; i < this.count; i++) {
      if (test(summary, i) && (!this.pattern || this.within.has(i) || this.matches(i))) keys.set(i, value(columns, i));
    }
    this.rows = [...keys.keys()].sort((a, b) => {
      const x = keys.get(a), y = keys.get(b), order = x < y ? -1 : x > y ? 1 : 0;
      return (this.reverse ? -order : order) || a - b;
    });
    // A number names a latent: it comes first.
    const named = this.rows.indexOf(this.row.get(Number(this.search.value.trim() || NaN)));
    if (named > 0) this.rows.unshift(...this.rows.splice(named, 1));
    this.tell();
  }

  // Say what is shown, and by what it is sorted.
  tell(progress = "") {
    const all = this.rows.length === this.count;
    const shown = all ? `${whole(this.count)} latents` : `${whole(this.rows.length)} of ${whole(this.count)}`;
    this.said.textContent = progress ? `${shown} · ${progress}` : shown;
    this.none.hidden = this.rows.length > 0;
    this.table.setAttribute("aria-rowcount", this.rows.length + 1);
    this.heads.forEach((head, i) => {
      if (this.columns[i][0] !== this.sort) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.reverse ? "descending" : "ascending");
    });
    const context = this.heads[this.columns.findIndex(([key]) => key === "context")].firstChild;
    context.textContent = this.within.size ? "found in, or strongest context" : "strongest context";
    this.order.value = this.sort;
    this.turn.textContent = this.reverse ? "↓" : "↑";
    for (const button of this.filters) button.setAttribute("aria-pressed", button.dataset.filter === this.filter);
  }

  matches(i) {
    const { latent, tokens, explanation } = this.summary.columns;
    const texts = [...tokens[i], explanation[i] ?? ""];
    return String(latent[i]) === this.search.value.trim() || texts.some((text) => this.pattern.test(text));
  }

  // Search: the table's own columns at once, then the contexts, block by block, until another search begins.
  async look() {
    const query = this.search.value.replaceAll("␣", " ").replaceAll("⏎", "\n");
    this.pattern = query.trim() ? new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu") : null;
    this.within = new Map();
    this.show({});
    const turn = ++this.turns, deep = this.pattern !== null && query.length > 1;
    this.place.setAttribute("aria-busy", deep);
    if (!deep) return;
    await new Promise((done) => setTimeout(done, 150)); // The reader may still be typing.
    const blocks = Math.ceil(this.count / this.summary.block);
    for (let k = 0, told = performance.now(); k < blocks; k++) {
      if (turn !== this.turns) return;
      await this.lookInto(k);
      if (performance.now() - told < 200) continue;
      this.arrange();
      this.paint();
      this.tell(`searching contexts, ${Math.round((100 * k) / blocks)}%`);
      await new Promise((done) => setTimeout(done));
      told = performance.now();
    }
    if (turn !== this.turns) return;
    this.arrange();
    this.paint();
    this.place.setAttribute("aria-busy", "false");
  }

  async lookInto(k) {
    const { pattern, within } = this;
    if (!this.texts.has(k)) this.texts.set(k, textsOf(await source.block(k)));
    this.texts.get(k).forEach((text, i) => {
      const found = pattern.exec(text);
      if (found) within.set(k * this.summary.block + i, around(text, found));
    });
  }

  get high() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row"));
  }

  // Put the rows in sight into the document, or the first so many, between two fillers as high as the others.
  paint(count = 0) {
    const { high, scroller, body } = this;
    const first = count ? 0 : Math.max(0, Math.floor(scroller.scrollTop / high) - 8);
    const last = Math.min(this.rows.length, count || first + Math.ceil(scroller.clientHeight / high) + 17);
    const held = body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.row : null;
    const filler = (rows) => {
      const cell = h("td");
      cell.style.height = `${rows * high}px`;
      return rows ? [h("tr.filler", { "aria-hidden": "true" }, cell)] : [];
    };
    const shown = this.rows.slice(first, last).map((row, i) => this.line(row, first + i));
    body.replaceChildren(...filler(first), ...shown, ...filler(this.rows.length - last));
    if (held !== null) body.querySelector(`tr[data-row="${held}"] a`)?.focus({ preventScroll: true });
  }

  line(row, place) {
    const { columns, rows } = this.summary;
    const latent = columns.latent[row], alive = columns.firings[row] > 0, live = (text) => (alive ? text : NONE);
    const explanation = columns.explanation[row], chips = () => h("div.chips", columns.tokens[row].map((t) => chip(t)));
    const tokens = () => (alive ? chips() : h("em", "dead: never fires here"));
    const cells = {
      latent: () => h("a", { href: `#/latent/${latent}` }, latent),
      // Where there is room for one of the two, what has no explanation shows its tokens.
      explanation: () =>
        explanation ? h("span", { title: explanation }, visible(explanation)) : h("div.instead", tokens()),
      score: () => fraction(columns.score[row]),
      tokens,
      context: () => this.snippet(row),
      fires: () => live(percent(columns.firings[row] / rows)),
      max: () => live(figure(columns.maximum[row])),
      mean: () => live(figure(columns.mean[row])),
      same: () => (columns.same[row] ? String(columns.same[row]) : NONE),
      sketch: () => sketch(columns.histogram[row]),
    };
    const current = row === this.current ? "true" : null;
    const onclick = (event) => event.target.closest("a") || open(latent);
    return h(
      alive ? "tr" : "tr.dead",
      { "data-row": row, "aria-rowindex": place + 2, "aria-current": current, onclick },
      this.columns.map(([key]) => h(`td.c-${key}`, cells[key]())),
    );
  }

  // Where what was searched for was found, else the strongest context.
  snippet(row) {
    const found = this.within.get(row), parts = found ?? this.summary.columns.context[row];
    if (!parts) return [];
    const [before, middle, after] = parts.map((text) => visible(text));
    const marked = h(found ? "span.t.found" : "span.t.on.peak", middle);
    return [h("span.before", h("span", before)), marked, h("span.after", after)];
  }

  // Make a latent the current one, and bring its row into sight.
  point(latent) {
    this.current = this.row.get(latent) ?? -1;
    const place = this.rows.indexOf(this.current), { high, scroller } = this;
    if (place >= 0 && scroller.clientHeight) {
      const top = place * high, room = scroller.clientHeight - 2 * high;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
    }
    this.paint();
  }

  // The latent so many rows from the current one, in the order shown; null at the ends.
  beside(step) {
    const place = this.rows.indexOf(this.current);
    const row = this.rows[place < 0 ? (step > 0 ? 0 : this.rows.length - 1) : place + step];
    return row === undefined ? null : this.summary.columns.latent[row];
  }
}

// Of each latent the text of its contexts; \0 parts one from the next.
function textsOf({ vocabulary, latents }) {
  const joined = (context) => context.tokens.map((number) => vocabulary.text[number]).join("");
  return latents.map((one) => [...one.top, ...one.quantiles.flat()].map(joined).join("\0"));
}

// What stands before a place in such a text, the place, and what stands behind.
function around(text, { index, 0: hit }) {
  const end = index + hit.length;
  return [text.slice(Math.max(index - 80, 0), index).split("\0").pop(), hit, text.slice(end, end + 80).split("\0")[0]];
}
