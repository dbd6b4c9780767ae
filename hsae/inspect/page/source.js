// Where the page gets its data: the one seam between this page and who made it. Two documents, described in
// documents.py: `summary()`, what the page is about and the table of latents, and `block(k)`, everything about the k-th
// `summary.block` latents of that table. Both are embedded in this file, or fetched from the server that sent it.

const source = (() => {
  const given = JSON.parse(document.getElementById("source").textContent);

  const fetched = async (path) => {
    const answer = await fetch(`${given.base}/${path}`);
    if (!answer.ok) throw new Error(`${path}: the server answered ${answer.status} ${answer.statusText}`);
    return answer.json();
  };

  // The table can be used while the browser still reads the blocks behind it.
  const parsed = new Promise((done) => {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
    else done();
  });

  const embedded = async (k) => {
    if (!document.getElementById(`block-${k}`)) await parsed;
    const packed = Uint8Array.from(atob(document.getElementById(`block-${k}`).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  };

  return given.base === undefined
    ? { summary: async () => given.summary, block: embedded }
    : { summary: () => fetched("summary"), block: (k) => fetched(`block/${k}`) };
})();
