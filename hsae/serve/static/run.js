// One run: its table, what can be looked at, on which store, and what can be compared.

const run = decodeURIComponent(location.pathname.split("/").pop());
const place = new URLSearchParams(location.search);

function state(row) {
  if (row.index === "diverged") return h("span", { class: "gone" }, ...visible(`diverged ${row.note}`));
  if (row.index === "impossible") return h("span", { class: "gone", title: row.note }, "not possible here");
  if (row.index === "stands") return h("a", { class: "button", href: saePath(row.sae) }, "latents");
  return h("a", { class: "button plain", href: saePath(row.sae) }, row.index === "building" ? "being built …" : "no index yet");
}

function draw(found) {
  const compare = h("button", { type: "button", disabled: true }, "Compare");
  const boxes = found.rows.map((row) => h("input", { type: "checkbox", "aria-label": `compare ${row.sae}`, disabled: row.index === "diverged" || row.index === "impossible" }));
  const chosen = () => found.rows.filter((_, i) => boxes[i].checked).map((row) => row.sae);
  const count = () => {
    const many = chosen().length;
    compare.disabled = many < 2 || many > 4;
    compare.textContent = many > 4 ? "Compare (4 at most)" : many ? `Compare ${many}` : "Compare";
  };
  boxes.forEach((box) => box.addEventListener("change", count));
  compare.addEventListener("click", () => (location.href = `/compare?${new URLSearchParams(chosen().map((name) => ["sae", name]))}`));

  const heads = [["setup"], ["seed", "number"], ...METRICS.map(([name, kind, title]) => [name, kind, title]), ["", "act"], ["compare", "act"]];
  const rows = found.rows.map((row, i) => [h("b", {}, ...visible(row.setup)), String(row.seed), ...METRICS.map(([, , , value]) => value(row)), state(row), boxes[i]]);
  const base = found.baselines.map((row) => [visible(row.name), "", ...METRICS.map(([name, , , value]) => (["L1", "dead"].includes(name) ? "" : value(row))), "", ""]);

  const where = h("select", { "aria-label": "Store to take evidence from" }, h("option", { value: "" }, `${found.store} (trained on)`),
    found.stores.filter(({ store, hook }) => store !== found.store || hook !== found.hook).map(({ store, hook, model, tokens }) => h("option", { value: JSON.stringify([store, hook]) }, `${store} · ${hook} · ${model} · ${whole(tokens)} tokens`)));
  if (place.get("on")) where.value = JSON.stringify([place.get("on"), place.get("hook") ?? found.hook]);
  where.addEventListener("change", () => {
    const [on, hook] = where.value ? JSON.parse(where.value) : ["", ""];
    location.search = on ? String(new URLSearchParams({ on, hook })) : "";
  });

  const facts = [`model ${found.model}`, found.hook, `${whole(found.latents)} latents of width ${whole(found.width)}`, `${whole(found.steps)} steps, ${whole(found.tokens)} tokens`, found.scale === 1 ? "" : `activations times ${figure(found.scale)}`];
  const sheet = table("saes", heads, [...rows, ...base]);
  sheet.querySelectorAll("tbody tr").forEach((row, i) => row.classList.toggle("base", i >= rows.length));
  document.title = run;
  $("about").replaceChildren(h("b", {}, ...visible(run)));
  $("sheet").replaceChildren(
    ...found.warnings.map(warning),
    h("header", {}, h("h1", {}, ...visible(run)), h("small", {}, ...visible(facts.filter(Boolean).join(" · ")))),
    h("p", { class: "where" }, h("label", {}, "Evidence from store ", where), compare),
    sheet,
    h("p", { class: "note" }, `Over ${whole(found.held_out)} held-out tokens. dict: latents that fire on any of them; dead: on none of the last ${whole(found.dead_window)} training tokens.`));
  document.body.dataset.ready = "yes";
}

ask(`/api/runs/${address(run)}${location.search}`).then(draw).catch(failed);
