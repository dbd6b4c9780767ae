// An SAE whose index is not there yet: what it takes, and the way to it.

const sae = decodeURIComponent(location.pathname.split("/").pop());

async function start() {
  const found = await ask(`/api/sae/${address(sae)}`);
  const { setup, seed } = found;
  $("about").replaceChildren(h("a", { href: `/run/${address(found.run)}` }, ...visible(found.run)), " ", ...visible(`${setup}, seed ${seed}`));
  const place = h("div"), said = h("div");
  const watch = new Watch(place, false);
  const button = h("button", { type: "button", class: "main" }, "Build the index");

  const follow = async (job) => {
    button.hidden = true;
    said.replaceChildren();
    try {
      const ended = await watch.until(job);
      if (ended === null && !(await ask(`/api/sae/${address(sae)}`)).stands) said.replaceChildren(note("Cancelled. What was read is saved: the next time it goes on from there."));
      else return location.reload();
    } catch (error) {
      said.replaceChildren(warning(error.message));
    }
    button.hidden = false;
  };

  button.addEventListener("click", async () => {
    try {
      await follow(await ask(`/api/sae/${address(sae)}/index`, "POST", {}));
    } catch (error) {
      said.replaceChildren(warning(error.message));
    }
  });
  $("sheet").replaceChildren(
    ...found.warnings.map(warning),
    h("header", {}, h("h1", {}, "No index yet")),
    h("p", {}, ...visible(`What ${setup} (seed ${seed}) of run ${found.run} fires on is not known yet. It takes one pass over store ${found.store}: ${whole(found.tokens)} tokens through ${whole(found.latents)} latents. It is kept in the run's folder; other pages can be used meanwhile.`)),
    button, place, said);
  document.body.dataset.ready = "yes";
  if (found.job !== null) await follow(await ask(`/api/jobs/${found.job}`));
}

start().catch(failed);
