"use strict";
(() => {
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;  // text, never markup: names come from outside
    return element;
  };

  // Tables: a click on a column sorts by its first number, or by its text.
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b, direction = 1) => {
    if (typeof a === typeof b) return direction * (a < b ? -1 : a > b ? 1 : 0);
    return typeof a === "number" ? -1 : 1;  // text comes last in both directions
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = make("button", "", cell.textContent);
      button.type = "button";
      cell.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compare(key(a, column), key(b, column), down ? -1 : 1));
        table.tBodies[0].append(...rows);
      });
    });
  }

  const data = document.getElementById("data");
  if (!data) return;
  const { classes, samples, presets, sorts } = JSON.parse(data.textContent);
  const at = (id) => document.getElementById(id);
  const name = (label) => classes[label] ?? String(label);
  const percent = (share) => `${(100 * share).toFixed(share > 0.0995 ? 0 : 1)} %`;
  const short = (number) => (number > 0 ? "+" : "") + number.toExponential(1);

  const bars = (title, shares, label) => {
    const box = make("div", "bars");
    box.append(make("h3", "", title));
    for (const [klass, share] of shares) {
      const bar = make("div", "bar");
      const called = make("span", klass === label ? "name label" : "name", name(klass));
      called.title = name(klass);
      const track = make("span", "track");
      const fill = make("span", "fill");
      fill.style.display = "block";
      fill.style.width = `${100 * Math.min(share, 1)}%`;
      track.append(fill);
      bar.append(called, track, make("span", "share", percent(share)));
      box.append(bar);
    }
    return box;
  };

  const card = (sample) => {
    const box = make("article", "card");
    box.dataset.index = sample.index;
    const top = make("div", "top");
    const image = make("img");
    image.src = sample.image;
    image.alt = `sample ${sample.index}`;
    const facts = make("div");
    facts.append(make("strong", "", `label ${name(sample.label)}`));
    facts.append(make("div", sample.right ? "good" : "bad", sample.right ? "teacher right" : "teacher wrong"));
    if (sample.selected !== null)
      facts.append(make("div", sample.selected ? "good" : "bad", sample.selected ? "distilled" : "not distilled"));
    if (sample.issue) facts.append(make("div", "bad", "likely label error"));
    top.append(image, facts);
    box.append(top);
    box.append(bars("teacher, clean view", sample.teacher, sample.label));
    if (sample.revised.length)
      box.append(bars(sample.beta === null ? "revised label" : `revised label, beta ${sample.beta.toFixed(3)}`, sample.revised, sample.label));
    if (sample.influence !== null) {
      const error = sample.error === null ? "" : ` ± ${sample.error.toExponential(1)}`;
      box.append(make("div", "", `influence ${short(sample.influence)}${error}`));
    }
    if (sample.reason !== "all") box.append(make("div", "note", sample.reason));
    box.append(make("div", "note", `sample ${sample.index}, key ${sample.key}`));
    return box;
  };

  let preset = presets[0];
  const wanted = (sample) => {
    const klass = at("class").value;
    const right = at("teacher").value;
    const kept = at("selected").value;
    return (
      (klass === "" || sample.label === Number(klass)) &&
      (right === "" || sample.right === (right === "1")) &&
      (kept === "" || sample.selected === (kept === "1"))
    );
  };
  const show = () => {
    let shown = preset.members.map((position) => samples[position]).filter(wanted);
    const by = at("sort").value;
    if (by) {
      shown.sort((a, b) => compare(a[by] ?? Infinity, b[by] ?? Infinity));
    }
    if (at("reverse").checked) shown.reverse();
    at("grid").replaceChildren(...shown.map(card));
    at("count").textContent =
      `Showing ${shown.length} of ${preset.total.toLocaleString("en")} ${preset.meaning}.`;
    for (const button of at("presets").children)
      button.setAttribute("aria-pressed", String(button.value === preset.name));
  };

  for (const one of presets) {
    const button = make("button", "", one.name);
    button.type = "button";
    button.value = one.name;
    button.addEventListener("click", () => {
      preset = one;
      show();
    });
    at("presets").append(button);
  }
  const option = (value, text) => {
    const made = make("option", "", text);
    made.value = value;
    return made;
  };
  const present = [...new Set(samples.map((sample) => sample.label))].sort((a, b) => a - b);
  at("class").append(option("", "all"), ...present.map((label) => option(label, name(label))));
  at("sort").append(option("", "relevance"), ...sorts.map(([by, text]) => option(by, text)));
  at("controls").hidden = false;
  at("controls").addEventListener("change", show);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  show();
})();
