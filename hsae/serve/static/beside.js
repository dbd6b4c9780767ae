// Two latents side by side, of this SAE or of two.

views.beside = (() => {
  const sheets = new Map(); // name of an SAE -> its table

  const sheet = (name) => {
    if (name === SAE) return whatIsThere();
    if (!sheets.has(name))
      sheets.set(name, ask(`/api/sae/${address(name)}/summary`).then((summary) => ({ summary, row: new Map(summary.columns.latent.map((latent, i) => [latent, i])) })));
    sheets.get(name).catch(() => sheets.delete(name));
    return sheets.get(name);
  };

  async function drawColumn(place, name, latent) {
    try {
      const { summary, row } = await sheet(name);
      if (!row.has(latent)) throw new Error(`latent ${latent} is not in 0…${summary.dictionary - 1}`);
      const k = Math.floor(row.get(latent) / summary.block);
      const block = await ask(`/api/sae/${address(name)}/block/${k}`);
      const drawn = drawLatent(summary, block, block.latents[row.get(latent) - k * summary.block], { row, beside: () => null });
      place.replaceChildren(h("p", { class: "of" }, h("a", { href: saePath(name, `#/latent/${latent}`) }, ...visible(`${summary.run} · ${summary.setup}, seed ${summary.seed}`))), ...drawn);
      place.querySelector(".steps")?.remove();
      place.querySelector(".doings")?.remove();
      for (const link of place.querySelectorAll('a[href^="#/latent/"]')) link.href = saePath(name, link.hash);
    } catch (error) {
      place.replaceChildren(warning(error.message));
    }
  }

  return {
    title: "Side by side",
    async draw(main, rest) {
      const [first = "", other = "", second = ""] = rest.split("/");
      const { runs } = await ask("/api/runs").catch(() => ({ runs: [] }));
      const names = [...new Set([SAE, ...(other ? [other] : []), ...runs.flatMap((run) => run.saes ?? [])])];
      const one = h("input", { type: "number", min: 0, value: first, "aria-label": "A latent of this SAE", required: true });
      const whose = h("select", { "aria-label": "The other SAE" }, names.map((name) => h("option", { value: name, selected: name === (other || SAE) }, name === SAE ? "this SAE" : name)));
      const two = h("input", { type: "number", min: 0, value: second, "aria-label": "A latent of the other SAE", required: true });
      const form = h("form", { class: "asking" }, h("div", { class: "row" }, h("label", {}, h("span", {}, "Latent"), one), h("label", {}, h("span", {}, "beside, of"), whose), h("label", {}, h("span", {}, "latent"), two), h("button", { class: "main" }, "Show")));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        location.hash = `#/beside/${one.value}/${encodeURIComponent(whose.value)}/${two.value}`;
      });
      const columns = h("div", { class: "columns even" });
      main.replaceChildren(h("header", {}, h("h1", {}, "Side by side")), form, columns);
      if (!/^\d+$/.test(first)) return one.focus();
      const places = [h("article", { class: "latent" }), h("article", { class: "latent" })];
      columns.append(...places);
      drawColumn(places[0], SAE, Number(first));
      if (/^\d+$/.test(second)) drawColumn(places[1], other || SAE, Number(second));
      else two.focus();
    },
  };
})();
