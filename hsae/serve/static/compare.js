// SAEs side by side: chosen here, compared by the server.

const wanted = new URLSearchParams(location.search).getAll("sae");

async function everySae() {
  const { runs } = await ask("/api/runs");
  return runs.filter((run) => run.standing === "whole").flatMap((run) => run.saes);
}

function chooser(all) {
  const names = [...new Set([...wanted, ...all])];
  const pick = (value, free) => h("select", { "aria-label": "An SAE to compare" }, free ? h("option", { value: "" }, "none") : null, names.map((name) => h("option", { value: name, selected: name === value }, name)));
  const second = wanted[1] ?? names.find((name) => name !== (wanted[0] ?? names[0]));
  const picks = [pick(wanted[0] ?? names[0], false), pick(second, false), pick(wanted[2] ?? "", true), pick(wanted[3] ?? "", true)];
  const form = h("form", { class: "chooser" }, picks, h("button", { class: "main" }, "Compare"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.search = String(new URLSearchParams([...new Set(picks.map((one) => one.value).filter(Boolean))].map((name) => ["sae", name])));
  });
  return form;
}

function drawn(found) {
  const rows = found.entries.map((entry) => [
    [h("a", { class: "name", href: saePath(entry.name) }, ...visible(entry.label)), h("small", {}, ...visible([[entry.encoder, entry.decoder].filter(Boolean).join(" / "), entry.variant].join(", ")))],
    ...METRICS.map(([, , , value]) => value(entry.figures)),
    entry.front ? "front" : "",
  ]);
  const heads = [["SAE"], ...METRICS.map(([name, kind, title]) => [name, kind, title]), ["Pareto", "number", "on the front: no other of them explains as much with fewer active latents"]];
  const pairs = found.pairs.map((markup) => {
    // In a root of its own: the comparison's style and the page's do not know of each other.
    const place = h("div"), root = place.attachShadow({ mode: "open" });
    // The server's own words, escaped there; no script in them could run.
    root.innerHTML = markup;
    root.prepend(...["compare", "compared"].map((name) => h("link", { rel: "stylesheet", href: `/static/${name}.css` })));
    return place;
  });
  return [...found.notes.map(note), table("saes", heads, rows), ...pairs];
}

async function start() {
  $("about").replaceChildren(h("b", {}, "Compare"));
  const all = await everySae();
  if (all.length < 2) return $("sheet").replaceChildren(h("p", { class: "empty" }, "There are no two SAEs to compare."));
  const place = h("div"), result = h("div");
  $("sheet").replaceChildren(h("header", {}, h("h1", {}, "Compare SAEs"), h("small", {}, "their metrics, and which latents of one are latents of the other")), chooser(all), place, result);
  document.body.dataset.ready = "yes";
  if (wanted.length < 2) return;
  const watch = new Watch(place);
  try {
    const found = await watch.until(await ask("/api/compare", "POST", { saes: wanted }));
    result.replaceChildren(...(found === null ? [note("Cancelled.")] : drawn(found)));
  } catch (error) {
    result.replaceChildren(warning(error.message));
  }
  document.body.dataset.ready = "compared";
}

start().catch(failed);
