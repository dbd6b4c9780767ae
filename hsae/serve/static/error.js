// What is shown in place of a page that cannot be had.

const { line, status } = document.body.dataset;
$("sheet").replaceChildren(h("header", {}, h("h1", {}, status === "404" ? "Not here" : "Not possible")), warning(line), h("p", {}, h("a", { href: "/" }, "All runs")));
document.body.dataset.ready = "yes";
