// What every page has: its elements by name, what the reader chose, and light or dark.

const $ = (id) => document.getElementById(id);

// What the reader chose, where the browser lets a page remember anything.
function remembered(key) {
  try {
    return localStorage.getItem(`hsae-${key}`);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`hsae-${key}`, value);
  } catch {
    // It holds until the page is closed.
  }
}

// Light or dark: the system's, until the reader says otherwise.

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function paintScheme(scheme) {
  if (scheme) document.documentElement.dataset.scheme = scheme;
  const dark = (document.documentElement.dataset.scheme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  $("scheme").textContent = dark ? "☀" : "☾";
  $("scheme").title = dark ? "Light" : "Dark";
  return dark;
}

$("scheme").addEventListener("click", () => {
  const scheme = paintScheme() ? "light" : "dark";
  remember("scheme", scheme);
  paintScheme(scheme);
});
prefersDark.addEventListener("change", () => paintScheme());
paintScheme(remembered("scheme"));
