// The page: its address, keys and tooltip. `#/` is the table, `#/latent/27` a latent, `#/NAME/…` a view of `views`.

const views = {}; // name -> {title, draw(main, rest)}: added to by scripts that come after this one

const shows = () => document.body.dataset.shows; // "list", "latent" or "view"

const open = (latent) => {
  if (latent !== null) location.hash = `#/latent/${latent}`;
};

// The tooltip of a token: by mouse, by tap, and by keys within a context.

const tip = {
  token: null,
  show(token) {
    const line = token.closest(".context");
    if (!line || token === this.token) return;
    this.hide();
    this.token = token;
    token.classList.add("shown");
    const box = $("tip");
    box.replaceChildren(...tokenWords(line, Number(token.dataset.i)));
    box.hidden = false;
    this.place();
  },
  place() {
    if (!this.token) return;
    const at = this.token.getClientRects()[0] ?? this.token.closest(".context").getBoundingClientRect();
    const { style } = $("tip"), { width, height } = $("tip").getBoundingClientRect();
    const above = at.top - height - 6;
    style.left = `${Math.max(6, Math.min(at.left, innerWidth - width - 6))}px`;
    style.top = `${above > 50 ? above : at.bottom + 6}px`;
  },
  hide() {
    this.token?.classList.remove("shown");
    this.token = null;
    $("tip").hidden = true;
  },
  // From token to token with the arrows, over those that show nothing.
  move(line, step) {
    const tokens = [...line.querySelectorAll(".t")].filter((token) => token.textContent);
    const next = tokens[tokens.indexOf(this.token) + step];
    if (!next) return;
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.show(next);
  },
};

document.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "mouse") return;
  const token = event.target.closest(".context .t");
  if (token) tip.show(token);
  else tip.hide();
});
document.addEventListener("click", (event) => {
  const token = event.target.closest(".context .t");
  if (token) tip.show(token);
  else tip.hide();
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(".context:focus-visible")) tip.show(event.target.querySelector(".peak"));
});
document.addEventListener("focusout", (event) => {
  if (event.target.matches(".context")) tip.hide();
});
document.addEventListener("scroll", () => tip.place(), { capture: true, passive: true });

const warn = (...words) => h("p.warning", { role: "alert" }, words);

// What the run is, above the table.
function drawHead(summary) {
  const { metrics } = summary;
  const setup = visible(`${summary.setup}, seed ${summary.seed}`);
  $("about").replaceChildren(h("b", visible(summary.run)), " ", ...setup);
  $("warnings").replaceChildren(...summary.warnings.map((line) => warn(h("b", "Warning: "), ...visible(line))));
  const held = `${whole(summary.held_out)} held-out tokens`;
  const tiles = [
    ["MSE", scientific(metrics.mse), `mean squared error over ${held}`],
    ["EVR", fraction(metrics.evr), "explained variance ratio: mean of per-token ratios"],
    ["pooled", fraction(metrics.evr_pooled), "explained variance ratio, pooled over tokens"],
    ["L1", scientific(metrics.l1), "sum of the code over the width"],
    ["L0", metrics.l0 === null ? NONE : metrics.l0.toFixed(1), "active latents of a token"],
    ["dictionary", whole(metrics.dictionary), `latents that fire on any of ${held}`],
    ["dead", whole(metrics.dead), `latents that never fired on the last ${whole(summary.dead_window)} training tokens`],
  ];
  const of = summary.rows < summary.positions ? ` of ${whole(summary.positions)}` : "";
  const facts = [
    summary.model && `model ${summary.model}`,
    summary.hook,
    `store ${summary.store}`,
    `${whole(summary.rows)}${of} tokens`,
    `${whole(summary.dictionary)} latents of width ${whole(summary.width)}`,
  ];
  return h(
    "div.run",
    h("h1.quiet", visible(`Latents of ${summary.run}`)),
    h("dl.tiles", tiles.map(([name, value, title]) => h("div", { title }, h("dt", name), h("dd", value)))),
    h("p", visible(facts.filter(Boolean).join(" · "))),
  );
}

const KEYS = [
  ["j k ↓ ↑", "next, previous latent, in the order of the table"],
  ["Enter", "open the latent"],
  ["Esc", "back to the table; leave the search"],
  ["/", "search; a number and Enter opens that latent"],
  ["← →", "in a context: from token to token"],
  ["w", "contexts on one line, or wrapped"],
  ["d", "dark or light"],
  ["?", "these keys"],
];

const SHADING =
  "A token's shade and underline say how active the latent is on it; the one that the context was chosen for is " +
  "framed. Activations have three digits.";

function drawKeys() {
  const kbd = (keys) => keys.split(" ").map((key) => h("kbd", key));
  $("keys").append(
    h("h2", { id: "keys-title" }, "Keys"),
    h("dl", KEYS.flatMap(([keys, words]) => [h("dt", kbd(keys)), h("dd", words)])),
    h("p", SHADING),
    h("button", { type: "button", onclick: () => $("keys").close() }, "close"),
  );
  $("keys").addEventListener("click", (event) => event.target === $("keys") && $("keys").close());
  $("help").addEventListener("click", () => $("keys").showModal());
}

// The keys of the whole page.
function listen(summary, list) {
  // j and k: in the table they move the current row, beside an open latent they open the next one.
  function walk(step) {
    const next = list.beside(step);
    if (next === null) return;
    list.point(next); // At once, so that a key held down walks on from here.
    if (shows() === "latent") return open(next);
    list.body.querySelector("[aria-current=true] a")?.focus({ preventScroll: true });
  }

  const keys = {
    j: () => walk(1),
    k: () => walk(-1),
    "/": () => ($("search").focus(), $("search").select()),
    "?": () => $("keys").showModal(),
    d: () => $("scheme").click(),
    w: () => document.querySelector("#detail .wrap")?.click(),
    Escape: () => (tip.token ? tip.hide() : shows() !== "list" && (location.hash = "#/")),
    Enter: () => open(list.current < 0 ? null : summary.columns.latent[list.current]),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const within = event.target;
    if (within === $("search")) return void inSearch(event);
    if (within.matches("input, textarea, select")) return;
    if (within.matches(".context") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      event.preventDefault();
      return tip.move(within, event.key === "ArrowRight" ? 1 : -1);
    }
    const inTable = shows() === "list";
    let { key } = event;
    if (inTable && key === "ArrowDown") key = "j";
    if (inTable && key === "ArrowUp") key = "k";
    if (key === "Enter" && (!inTable || within.matches("a, button"))) return;
    if (!keys[key] || shows() === "view") return;
    event.preventDefault();
    keys[key]();
  });

  $("search").addEventListener("input", () => {
    if (!$("list").offsetParent) location.hash = "#/"; // Only the table shows what is found.
  });

  function inSearch(event) {
    if (event.key === "Escape") {
      event.preventDefault();
      if ($("search").value) {
        $("search").value = "";
        list.look();
      } else $("search").blur();
    } else if (event.key === "Enter") {
      const number = /^\s*\d+\s*$/.test($("search").value) ? Number($("search").value) : NaN;
      open(list.row.has(number) ? number : list.rows.length ? summary.columns.latent[list.rows[0]] : null);
      $("search").blur();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      $("search").blur();
      walk(1);
    }
  }
}

function decoded(address) {
  try {
    return decodeURIComponent(address);
  } catch {
    return address; // A % that encodes nothing.
  }
}

async function start() {
  drawKeys();
  const summary = await source.summary();
  $("list").append(drawHead(summary));
  const list = new List(summary, $("list"), $("search"));
  const named = Object.entries(views);
  $("nav").hidden = !named.length;
  $("nav").append(...named.map(([name, { title }]) => h("a", { href: `#/${name}` }, title)));
  const title = document.title;
  let blocks = [], waited = "";

  const block = (k) => {
    let found = blocks.find(([number]) => number === k);
    if (!found) blocks = [(found = [k, source.block(k)]), ...blocks].slice(0, 4);
    found[1].catch(() => (blocks = blocks.filter((one) => one !== found)));
    return found[1];
  };

  async function latent(number) {
    const row = list.row.get(number);
    list.point(number);
    if (row === undefined) return [h("p.empty", `There is no latent ${number} in this page.`)];
    const k = Math.floor(row / summary.block);
    const found = await block(k);
    return drawLatent(summary, found, found.latents[row - k * summary.block], list);
  }

  async function route() {
    const hash = location.hash;
    const [, name = "", rest = ""] = decoded(hash).match(/^#\/([^/]*)\/?(.*)$/s) ?? [];
    waited = hash;
    tip.hide();
    const number = name === "latent" && /^\d+$/.test(rest) ? Number(rest) : null;
    let drawn = [];
    if (number !== null) {
      const failed = (error) => [warn(`Latent ${number} cannot be shown: ${error.message}`)];
      drawn = await latent(number).catch(failed);
      if (waited !== hash) return; // Another latent was asked for meanwhile.
    }
    const view = Object.hasOwn(views, name) ? views[name] : undefined;
    document.body.dataset.shows = view ? "view" : number === null ? "list" : "latent";
    $("list").hidden = Boolean(view);
    $("detail").hidden = number === null;
    $("view").hidden = !view;
    $("detail").replaceChildren(...drawn);
    $("detail").scrollTop = 0;
    $("detail").classList.toggle("bare", !$("detail").querySelector(".contexts"));
    for (const link of $("nav").children) link.toggleAttribute("aria-current", link.hash === `#/${name}`);
    document.title = number === null ? title : `${number} · ${title}`;
    if (view) view.draw($("view"), rest);
    else if (number === null) list.paint();
    else list.point(number);
    if (document.activeElement !== $("search")) $("detail").querySelector("h1")?.focus({ preventScroll: true });
  }

  addEventListener("hashchange", route);
  listen(summary, list);
  // A page of one latent is that latent.
  if (list.count === 1 && !location.hash) history.replaceState(null, "", `#/latent/${summary.columns.latent[0]}`);
  await route();
  document.body.dataset.ready = performance.now(); // milliseconds since the page was asked for
}

start().catch((error) => $("list").replaceChildren(warn(`The page cannot be shown: ${error.message}`)));
