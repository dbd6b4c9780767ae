// A text of one's own: which latents fire on which token of it.

views.text = (() => {
  const FIRST = 40; // latents listed before the rest are asked for
  const input = h("textarea", { rows: 3, maxlength: 20000, "aria-label": "Your own text", placeholder: "Once upon a time, there was a little dog named Tom.", spellcheck: "false" });
  const send = h("button", { class: "main" }, "Read");
  const form = h("form", { class: "asking" }, input, h("div", { class: "row" }, send, h("small", {}, "Ctrl + Enter")));
  const place = h("div"), result = h("div", { class: "read" });
  const watch = new Watch(place);
  let latent = null, token = null, shown = null; // the chosen latent, the chosen token, what is drawn

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (watch.running) return;
    send.disabled = true;
    try {
      const found = await watch.until(await ask(`${BASE}/read`, "POST", { text: input.value || input.placeholder }));
      if (found === null) result.replaceChildren(note("Cancelled."));
      else drawReading(found, await whatIsThere());
    } catch (error) {
      result.replaceChildren(warning(error.message));
    }
    send.disabled = false;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  function drawReading(found, { summary, row }) {
    const maximum = (one) => summary.columns.maximum[row.get(one)] || 1;
    // What is near to its maximum and of one token comes first; what fires on everything last.
    const telling = (one, value) => {
      const i = row.get(one), dense = summary.columns.firings[i] > summary.dense * summary.rows;
      return (Math.min(value / maximum(one), 1) * summary.columns.same[i]) / summary.top - (dense ? 2 : 0);
    };
    const fires = new Map(found.latents.map((one) => [one.latent, one]));
    const words = (i) => found.tokens[i].text || "·";
    const spans = found.tokens.map((one, i) =>
      h("span", { role: "button", tabindex: 0, class: `t${one.counts ? "" : " out"}`, title: one.counts ? null : "the store leaves this position out", onclick: () => turn(i), onkeydown: (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), turn(i)) }, one.text ? lined(one.text) : h("i", { class: "sign" }, "·")));
    const turn = (i) => choose({ token: token === i ? null : i });
    const list = h("div"), head = h("h2"), said = h("p", { class: "note", role: "status" });
    const ranked = (rows) => rows.sort(([a, x], [b, y]) => telling(b, y) - telling(a, x) || y - x || a - b);
    const everywhere = ranked(found.latents.map((one) => [one.latent, one.maximum]));
    token = null;

    function shade(one) {
      const value = new Array(spans.length).fill(0), of = fires.get(one);
      of?.positions.forEach((position, i) => (value[position] = of.activations[i] / maximum(one)));
      spans.forEach((span, i) => {
        const strength = Math.min(value[i], 1);
        span.classList.toggle("on", strength > 0);
        span.classList.toggle("strong", strength > 0.55);
        span.style.setProperty("--s", strength.toFixed(3));
        span.setAttribute("aria-pressed", String(token === i));
      });
      const fired = of ? `latent ${one} fires on ${whole(of.positions.length)} of ${whole(spans.length)} tokens` : one === null ? "" : `latent ${one} fires nowhere in this text`;
      said.textContent = [`${whole(found.latents.length)} latents fire`, fired].filter(Boolean).join("; ");
    }

    function line([one, value]) {
      const { peak } = fires.get(one);
      const mark = h("button", { type: "button", class: "mark", "aria-pressed": String(one === latent), title: `latent ${one} is the strongest on this token; shade the text by it`, onclick: () => choose({ latent: one }) }, chip(words(peak)));
      return h("tr", { "data-latent": one, "aria-selected": String(one === latent), onpointerenter: () => shade(one), onpointerleave: () => shade(latent), onclick: (event) => event.target.closest("a, button") || choose({ latent: one }) },
        h("th", { scope: "row" }, h("a", { href: `#/latent/${one}` }, one)), h("td", { class: "about" }, about(summary, row.get(one))), h("td", { class: "peaks" }, mark),
        h("td", { class: "drawn", title: `${percent(value / maximum(one))} of its maximum on the store` }, bar(value / maximum(one))), h("td", { class: "number" }, figure(value)));
    }

    function fill(all = false) {
      const at = token === null ? null : found.tokens[token];
      const rows = at ? ranked(at.active.map((one) => [one.latent, one.activation])) : everywhere, first = rows.slice(0, FIRST);
      // The chosen latent is among those listed, wherever it ranks.
      const chosen = rows.filter(([one]) => one === latent && !first.some(([other]) => other === one));
      const some = all ? rows : [...chosen, ...first];
      head.replaceChildren(at ? h("span", {}, "On ", chip(words(token))) : "Latents that fire",
        h("small", {}, at ? `${whole(at.l0)}${at.l0 > rows.length ? `, the strongest ${rows.length}` : ""}` : "the most telling first"),
        ...(at ? [h("button", { type: "button", onclick: () => choose({ token: null }) }, "all tokens")] : []));
      const heads = h("thead", {}, h("tr", {}, h("td", { class: "which" }), h("td"), h("th", { scope: "col", class: "peaks" }, "strongest on"), h("td", { class: "drawn" }), h("th", { scope: "col", class: "number" }, at ? "here" : "there")));
      list.replaceChildren(rows.length ? h("table", { class: "bars firing" }, heads, h("tbody", {}, some.map(line))) : h("p", { class: "empty" }, at?.counts === false ? "The store leaves this position out." : "No latent fires."),
        ...(some.length < rows.length ? [h("button", { type: "button", class: "all", onclick: () => fill(true) }, `all ${whole(rows.length)}`)] : []));
    }

    function choose(changes) {
      if ("token" in changes) {
        token = changes.token;
        if (token !== null) latent = ranked(found.tokens[token].active.map((one) => [one.latent, one.activation]))[0]?.[0] ?? null;
      }
      if ("latent" in changes) latent = changes.latent;
      shade(latent);
      const line = list.querySelector(`tr[data-latent="${latent}"]`);
      // Rows that move would slide another one under the pointer.
      if ("token" in changes || !line) return fill();
      for (const row of list.querySelectorAll("tbody tr")) {
        row.setAttribute("aria-selected", String(row === line));
        row.querySelector(".mark").setAttribute("aria-pressed", String(row === line));
      }
    }

    shown = choose;
    choose({ latent: latent ?? everywhere[0]?.[0] ?? null });
    const hint = h("p", { class: "hint" }, "A token: the latents on it. A latent: the tokens it fires on.");
    result.replaceChildren(...found.notes.map(note), said, h("div", { class: "columns" }, h("section", {}, h("p", { class: "tokens" }, spans), hint), h("section", { class: "panel" }, head, list)));
    document.body.dataset.read = String(found.tokens.length);
  }

  return {
    title: "Your text",
    draw(main, rest) {
      const asked = /^\d+$/.test(rest) ? Number(rest) : null;
      if (asked !== null) latent = asked;
      if (shown) shown({ latent });
      main.replaceChildren(h("header", {}, h("h1", {}, "Your own text"), h("small", {}, asked === null ? "which latents fire on which token" : `where latent ${asked} fires in it`)), form, place, result);
      input.focus({ preventScroll: true });
    },
  };
})();
