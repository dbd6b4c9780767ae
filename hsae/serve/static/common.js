// The server's answers, the jobs that take longer than an answer may, and small parts that several views share.

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// What the server says; an Error with its one line where it refuses.
async function ask(path, method = "GET", body = undefined, keepalive = false) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, { method, headers, keepalive, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("the server does not answer; does it still run?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? `the server answered ${answer.status}`);
  return said;
}

const address = (name) => encodeURIComponent(name).replaceAll("%3A", ":").replaceAll("%40", "@");
const saePath = (name, rest = "") => `/sae/${address(name)}${rest}`;

// A job of the server, from its first view to its end: a line of what is done, a bar, and a way to cancel it.
class Watch {
  constructor(place, leave = true) {
    this.place = place; // where it shows
    this.job = null;
    if (leave) addEventListener("pagehide", () => this.cancel());
  }

  get running() {
    return this.job !== null;
  }

  cancel() {
    if (this.job !== null) ask(`/api/jobs/${this.job}`, "DELETE", undefined, true).catch(() => {});
  }

  // The job's result; null where it was cancelled. `partial` is told what there is of it already.
  async until(job, partial = () => {}) {
    const words = h("span", {}), fill = h("progress", { max: 1 });
    const stop = h("button", { type: "button", onclick: () => (stop.setAttribute("disabled", ""), this.cancel()) }, "cancel");
    this.place.replaceChildren(h("div", { class: "doing", role: "status" }, words, fill, stop));
    try {
      for (let wait = 60; ; wait = Math.min(1.25 * wait, 400)) {
        this.job = ["waiting", "running"].includes(job.state) ? job.job : null;
        const share = job.total ? Math.min(job.done / job.total, 1) : null;
        const far = share === null ? "" : job.total > 999 ? `, ${Math.floor(100 * share)}%` : `, ${job.done} of ${job.total}`;
        words.textContent = job.state === "waiting" ? "waiting for other work" : `${job.doing || "starting"}${far}`;
        if (share === null) fill.removeAttribute("value");
        else fill.value = share;
        if (job.partial !== null && job.partial !== undefined) partial(job.partial);
        if (job.state === "done") return job.result;
        if (job.state === "failed") throw new Error(job.error);
        if (job.state === "cancelled") return null;
        await sleep(wait);
        job = await ask(`/api/jobs/${job.job}`);
      }
    } finally {
      this.job = null;
      this.place.replaceChildren();
    }
  }
}

const warning = (line) => h("p", { class: "warning", role: "alert" }, ...visible(line));
const note = (line) => h("p", { class: "note" }, ...visible(line));

// A text of several lines: the sign of a line's end, and a new line.
const lined = (text) => text.split("\n").flatMap((part, i) => [...(i ? [h("i", { class: "sign" }, "⏎"), h("br")] : []), ...visible(part)]);

function ago(seconds) {
  const past = Date.now() / 1000 - seconds;
  for (const [length, word] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    const count = Math.floor(past / length);
    if (count >= 1) return count > 30 && word === "day" ? new Date(1000 * seconds).toISOString().slice(0, 10) : `${count} ${word}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

// A table that becomes a list of cards where the screen is narrow: every cell knows its heading.
function table(kind, heads, rows) {
  const body = rows.map((cells) => {
    const row = h("tr", {}, cells.map((cell, i) => h(i ? "td" : "th", { scope: i ? null : "row", "data-head": heads[i][0], class: heads[i][1] ?? null }, cell)));
    return row;
  });
  const head = heads.map(([name, className, title]) => h("th", { scope: "col", class: className ?? null, title }, name));
  return h("div", { class: "framed" }, h("table", { class: `sheet ${kind}` }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

const METRICS = [
  ["MSE", "number", "mean squared error over held-out tokens", (row) => scientific(row.mse)],
  ["EVR", "number", "explained variance ratio: mean of per-token ratios", (row) => fraction(row.evr)],
  ["pooled", "number", "explained variance ratio, pooled over tokens", (row) => fraction(row.evr_pooled)],
  ["L1", "number", "sum of the code over the width", (row) => scientific(row.l1)],
  ["L0", "number", "active latents of a token", (row) => (row.l0 === null ? NONE : row.l0.toFixed(1))],
  ["dict", "number", "latents that fire on any held-out token", (row) => whole(row.dictionary)],
  ["dead", "number", "latents that fired on none of the last training tokens", (row) => whole(row.dead)],
];
