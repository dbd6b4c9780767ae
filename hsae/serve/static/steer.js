// Steering: a prompt continued with latents pushed, beside what the model writes by itself.

views.steer = (() => {
  const field = (label, input, className = "") => h("label", { class: className }, h("span", {}, label), input);
  const latents = h("input", { type: "text", inputmode: "numeric", placeholder: "27, 30", "aria-label": "Latents to steer by, numbers with commas", autocomplete: "off" });
  const how = h("select", { "aria-label": "What to do" }, h("option", { value: "add" }, "add to it"), h("option", { value: "set" }, "set it to"), h("option", { value: "ablate" }, "ablate it"));
  const strength = h("input", { type: "number", step: "any", value: "1", "aria-label": "Strength" });
  const slider = h("input", { type: "range", min: -4, max: 4, step: 0.25, value: 1, "aria-label": "Strength, by a slider" });
  const unit = h("select", { "aria-label": "Unit of the strength" }, h("option", { value: "max" }, "× its maximum"), h("option", { value: "mean" }, "× its mean"), h("option", { value: "activation" }, "activation"));
  const prompt = h("textarea", { rows: 2, maxlength: 20000, "aria-label": "Prompt", placeholder: "Once upon a time, there was a", spellcheck: "false" });
  const tokens = h("input", { type: "number", min: 1, max: 256, value: 40 }), temperature = h("input", { type: "number", min: 0, max: 10, step: 0.1, value: 0 }), seed = h("input", { type: "number", min: 0, value: 0 });
  const send = h("button", { class: "main" }, "Write");
  const meant = h("p", { class: "meant" });
  const amount = h("span", { class: "amount" }, slider, strength, unit);
  const form = h("form", { class: "asking", novalidate: true },
    h("div", { class: "row" }, field("Latents", latents), field("Do", how), field("Strength", amount, "wide")), meant, prompt,
    h("div", { class: "row" }, send, field("tokens", tokens), field("temperature", temperature), field("seed", seed), h("small", {}, "Ctrl + Enter")));
  const place = h("div"), result = h("div");
  const watch = new Watch(place);

  slider.addEventListener("input", () => (strength.value = slider.value));
  strength.addEventListener("input", () => (slider.value = strength.value));
  how.addEventListener("change", () => (amount.closest("label").hidden = how.value === "ablate"));
  latents.addEventListener("input", say);

  const named = () => latents.value.split(/[\s,]+/).filter(Boolean).map(Number);

  async function say() {
    const { summary, row } = await whatIsThere();
    meant.replaceChildren(...named().slice(0, 16).map((latent) =>
      h("span", {}, h("a", { href: `#/latent/${latent}` }, Number.isNaN(latent) ? "?" : latent), " ", row.has(latent) ? about(summary, row.get(latent)) : "no such latent")));
  }

  // The written part of both, the words that differ set apart.
  function column(title, before, pieces, other, facts) {
    let same = true;
    const spans = pieces.map((text, i) => {
      same &&= text === other[i];
      return h("span", { class: same ? null : "new" }, ...lined(text));
    });
    return h("section", { class: "written" }, h("h2", {}, title, h("small", {}, facts)), h("p", {}, h("span", { class: "prompted" }, ...lined(before)), spans));
  }

  const ends = { tokens: "", text: "the text ends", context: "the context is full" };

  function drawSteered(found) {
    const [pushed] = found.steered, by = found.latents.map(({ latent }) => latent).join(", ");
    const before = found.prompt_text.join("");
    const what = found.clamp ? (pushed.strength === 0 ? `without ${by}` : `${by} set to ${figure(pushed.strength)}`) : `${by} at ${figure(pushed.strength)}`;
    const amounts = found.latents.map(({ unit }) => figure(pushed.strength * unit)).join(", ");
    const facts = [ends[pushed.end], pushed.strength ? `activation ${found.clamp ? "" : "+ "}${amounts}` : "", pushed.kl === null ? "" : `KL ${figure(pushed.kl)} nats`, pushed.norm === null ? "" : `${figure(pushed.norm)} × the usual norm`];
    const same = pushed.tokens.join() === found.unchanged.tokens.join();
    result.replaceChildren(...found.notes.map(note), ...(same ? [note("Both are the same.")] : []),
      h("div", { class: "columns even" }, column("By itself", before, found.unchanged.text, found.unchanged.text, ends[found.unchanged.end]), column(`Steered: ${what}`, before, pushed.text, found.unchanged.text, facts.filter(Boolean).join(" · "))));
    document.body.dataset.steered = same ? "same" : "other";
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (watch.running) return;
    send.disabled = true;
    delete document.body.dataset.steered;
    const text = prompt.value || prompt.placeholder;
    const wish = { latents: named(), prompt: text, strength: how.value === "ablate" ? 0 : Number(strength.value), unit: unit.value, clamp: how.value !== "add", tokens: Number(tokens.value), temperature: Number(temperature.value), seed: Number(seed.value) };
    const titles = ["By itself", "Steered"];
    const partial = (texts) => result.replaceChildren(h("div", { class: "columns even" }, texts.map((written, i) => h("section", { class: "written" }, h("h2", {}, titles[i]), h("p", {}, h("span", { class: "prompted" }, ...lined(text)), ...lined(written))))));
    try {
      const found = await watch.until(await ask(`${BASE}/steer`, "POST", wish), partial);
      if (found === null) result.prepend(note("Cancelled: what was written by then."));
      else drawSteered(found);
    } catch (error) {
      result.replaceChildren(warning(error.message));
    }
    send.disabled = false;
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  return {
    title: "Steer",
    draw(main, rest) {
      if (rest) latents.value = rest;
      say();
      main.replaceChildren(h("header", {}, h("h1", {}, "Steer"), h("small", {}, "what the model writes with a latent's direction added, or taken out")), form, place, result);
      (latents.value ? prompt : latents).focus({ preventScroll: true });
    },
  };
})();
