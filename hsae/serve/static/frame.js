// The frame of the pages over many runs.

for (const link of $("nav").children) link.toggleAttribute("aria-current", link.pathname === location.pathname);

function failed(error) {
  $("sheet").replaceChildren(warning(error.message));
  document.body.dataset.ready = "yes";
}
