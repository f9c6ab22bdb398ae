"use strict";
for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      rows.sort((a, b) => (down ? -1 : 1) * compare(value(a, column), value(b, column)));
      for (const row of rows) body.appendChild(row);
    });
  });
}
for (const find of document.querySelectorAll(".find")) {
  const input = find.querySelector("input");
  const count = find.querySelector(".count");
  const rows = Array.from(find.parentElement.querySelector("table").tBodies[0].rows);
  find.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) shown += 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
}

const sections = Array.from(document.querySelectorAll("section > details"));
const all = document.querySelector("nav .all");
if (sections.length > 1) {
  all.hidden = false;
  all.addEventListener("click", () => {
    const open = sections.some((section) => !section.open);
    for (const section of sections) section.open = open;
    all.textContent = open ? "Close all" : "Open all";
  });
}
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const details = target && target.querySelector(":scope > details");
  if (details) { details.open = true; target.scrollIntoView(); }
};
window.addEventListener("hashchange", reveal);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(reveal));
window.addEventListener("beforeprint", () => { for (const section of sections) section.open = true; });
reveal();

document.addEventListener("click", async (event) => {
  const button = event.target instanceof Element && event.target.closest("button.copy");
  if (!button) return;
  const text = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (button.closest("dialog") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.title = "Copied";
  button.setAttribute("aria-label", `Copied ${text}`);
});

let viewer = null;
let group = [];
let place = 0;
const element = (name, text, click) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (click) { made.type = "button"; made.addEventListener("click", click); }
  return made;
};
const show = (step) => {
  place = (place + step + group.length) % group.length;
  const here = group[place];
  const images = Array.from(here.querySelectorAll("img"), (small) => {
    const image = document.createElement("img");
    image.src = small.src;
    image.alt = small.alt;
    return image;
  });
  const sides = document.createElement("div");
  sides.className = images.length > 1 ? "sides" : "";
  sides.append(...images);
  const words = Array.from(here.querySelectorAll("figcaption, p"), (some) => some.cloneNode(true));
  viewer.querySelector(".body").replaceChildren(sides, ...words);
  viewer.querySelector(".count").textContent = `${place + 1} of ${group.length}`;
};
const open = (zoom) => {
  if (!viewer) {
    viewer = document.createElement("dialog");
    viewer.setAttribute("aria-label", "Picture");
    const bar = element("div", "");
    bar.className = "bar";
    const count = element("span", "");
    count.className = "count";
    bar.append(element("button", "Previous", () => show(-1)), count, element("button", "Next", () => show(1)));
    bar.append(element("button", "Close", () => viewer.close()));
    const body = element("div", "");
    body.className = "body";
    viewer.append(bar, body);
    viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
    viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") show(1);
      if (event.key === "ArrowLeft") show(-1);
    });
    // The page's images are counted by those who look at it: none is left behind.
    viewer.addEventListener("close", () => viewer.querySelector(".body").replaceChildren());
    document.body.append(viewer);
  }
  const kind = zoom.closest(".pair") ? ".pair" : "figure:not(.none)";
  const room = zoom.closest(".pairs, .gallery") || document;
  group = Array.from(room.querySelectorAll(kind));
  place = group.indexOf(zoom.closest(kind));
  show(0);
  viewer.showModal();
};
for (const zoom of document.querySelectorAll(".zoom")) {
  const words = zoom.querySelector("img").alt;
  zoom.setAttribute("aria-label", `Enlarge: ${words}`);
  zoom.addEventListener("click", () => open(zoom));
}
