// The start page: every run under the cache, whole or not, and the stores.

const VISIBLE_FILTER = 8; // runs from which on a filter helps

function runRow(run) {
  const gone = run.store_there === false;
  const kinds = run.setups.length > 4 ? [...run.setups.slice(0, 4), `+ ${run.setups.length - 4}`] : run.setups;
  return [
    [h("a", { class: "name", href: `/run/${address(run.name)}` }, ...visible(run.name)), h("small", {}, ...visible([run.model, run.hook].filter(Boolean).join(" · ")))],
    [h("span", {}, ...visible(kinds.join(", "))), h("small", {}, `${whole(run.saes.length + run.diverged)} SAE${run.saes.length + run.diverged > 1 ? "s" : ""}, ${run.seeds} seed${run.seeds > 1 ? "s" : ""}${run.diverged ? `, ${run.diverged} diverged` : ""}`)],
    whole(run.latents),
    run.best ? [h("span", {}, fraction(run.best.evr_pooled)), h("small", {}, ...visible(run.best.setup))] : NONE,
    run.best && run.best.l0 !== null ? run.best.l0.toFixed(1) : NONE,
    [h("span", { class: gone ? "gone" : null }, ...visible(run.store)), gone ? h("small", { class: "gone" }, "not there") : null],
    [h("span", {}, `${run.indexed} of ${run.saes.length}`)],
    ago(run.changed),
  ];
}

const RUN_HEADS = [
  ["run"], ["setups"], ["latents", "number"], ["EVR", "number", "the best setup's pooled explained variance over held-out tokens"],
  ["L0", "number", "active latents of a token, of that setup"], ["store"], ["indexed", "number", "SAEs that can be looked at without a pass over the store"], ["finished", "number"],
];

function storeRow(store) {
  if (store.note) return [[h("span", { class: "name" }, ...visible(store.name))], h("span", { class: "gone" }, ...visible(store.note)), "", "", ""];
  return [[h("span", { class: "name" }, ...visible(store.name))], visible(store.model || NONE), visible(store.hooks.map(({ hook, width }) => `${hook}, ${width} wide`).join("; ")), whole(store.tokens), store.dtype];
}

function draw(found) {
  const sound = found.runs.filter((run) => run.standing === "whole"), broken = found.runs.filter((run) => run.standing !== "whole");
  const filter = h("input", { type: "search", placeholder: "Filter runs", "aria-label": "Filter runs by name, model, hook point, setup or store", autocomplete: "off", spellcheck: "false" });
  const place = h("div"), none = h("p", { class: "empty" }, "No run matches.");
  const show = () => {
    const wanted = filter.value.trim().toLowerCase();
    const shown = sound.filter((run) => [run.name, run.model, run.hook, run.store, ...run.setups].join(" ").toLowerCase().includes(wanted));
    place.replaceChildren(shown.length ? table("runs", RUN_HEADS, shown.map(runRow)) : none);
  };
  filter.addEventListener("input", show);
  show();
  const parts = [h("header", {}, h("h1", {}, "Runs"), h("small", {}, ...visible(`${sound.length} in ${found.cache}`)), sound.length > VISIBLE_FILTER ? filter : null)];
  if (sound.length) parts.push(place);
  else parts.push(h("p", { class: "empty" }, "No run is there yet: ", h("code", {}, "hsae harvest"), " makes a store, ", h("code", {}, "hsae train"), " a run on it."));
  if (broken.length)
    parts.push(h("h2", {}, "Not whole"), table("broken", [["run"], ["state"], ["what is wrong"]], broken.map((run) => [h("span", { class: "name" }, ...visible(run.name)), h("span", { class: "tag" }, run.standing), visible(run.note)])));
  if (found.stores.length)
    parts.push(h("h2", {}, "Stores"), table("stores", [["store"], ["model"], ["hook points"], ["tokens", "number"], ["type"]], found.stores.map(storeRow)));
  $("sheet").replaceChildren(...parts);
}

async function drawJobs(place) {
  const { jobs } = await ask("/api/jobs");
  place.replaceChildren(...jobs.map((job) => h("p", { class: "job" }, ...visible(`${job.state}: ${job.about}`), job.total ? ` ${Math.floor((100 * job.done) / job.total)}%` : "", " ", h("button", { type: "button", onclick: () => ask(`/api/jobs/${job.job}`, "DELETE") }, "cancel"))));
}

async function start() {
  draw(await ask("/api/runs"));
  const place = h("div", { class: "jobs", role: "status" });
  $("sheet").prepend(place);
  document.body.dataset.ready = "yes";
  for (;;) {
    await drawJobs(place).catch((error) => place.replaceChildren(warning(error.message)));
    await sleep(2000);
  }
}

start().catch(failed);
