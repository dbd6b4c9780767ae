// What the inspector's page gets on a server: ways to the other pages, and from a latent to what can be done with it.

const SAE = decodeURIComponent(location.pathname.split("/").pop());
const BASE = `/api/sae/${address(SAE)}`;

$("home").href = "/";
$("home").setAttribute("aria-label", "All runs");
$("nav").append(
  h("a", { href: `/run/${address(SAE.split(":")[0])}` }, "Run"),
  h("a", { href: `/compare?${new URLSearchParams({ sae: SAE })}` }, "Compare"),
  h("a", { href: "#/" }, "Latents"),
);

panels.push((one) =>
  h("p", { class: "doings" },
    h("a", { class: "button plain", href: `#/text/${one.latent}` }, "In my text"),
    one.firings ? h("a", { class: "button plain", href: `#/steer/${one.latent}` }, "Steer by it") : null,
    h("a", { class: "button plain", href: `#/beside/${one.latent}` }, "Beside another")),
);

// A latent's number as a link, and what it is about.
function about(summary, row) {
  if (row === undefined) return [];
  const explained = summary.columns.explanation[row];
  return explained ? visible(explained) : summary.columns.tokens[row].slice(0, 4).map((text) => chip(text));
}

// The table's document, asked for once by all views.
const whatIsThere = (() => {
  let asked = null;
  return () => {
    asked ??= source.summary().then((summary) => ({ summary, row: new Map(summary.columns.latent.map((latent, i) => [latent, i])) }));
    asked.catch(() => (asked = null));
    return asked;
  };
})();
