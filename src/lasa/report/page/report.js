"use strict";
// Texts of samples are untrusted: they enter the page through textContent alone.
(() => {
  const PAGE_SIZE = 25;

  const told = document.getElementById("told");
  for (const cell of document.querySelectorAll("[data-told]")) {
    for (const event of ["mouseenter", "focus", "click"]) {
      cell.addEventListener(event, () => { told.textContent = cell.dataset.told; });
    }
  }
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details.numbers")) fold.open = true;
  });

  const data = document.getElementById("samples");
  if (!data) return;
  const samples = JSON.parse(data.textContent);
  for (const sample of samples) {
    sample.haystack = [sample.prompt, sample.answer, sample.query, sample.reason].join("\n").toLowerCase();
  }
  const search = document.getElementById("search");
  const selects = [...document.querySelectorAll("#filters select")];
  const body = document.getElementById("rows");
  const more = document.getElementById("more");
  let matching = [];
  let shown = 0;

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const spaced = (text) => text.replaceAll("_", " ");

  for (const select of selects) {
    const field = select.dataset.field;
    const names = new Map(samples.map((s) => [s[field], field === "language" ? s.language_name : spaced(s[field])]));
    select.append(new Option("all", ""));
    for (const [value, name] of names) select.append(new Option(name, value));
    select.addEventListener("change", filter);
  }
  search.addEventListener("input", filter);
  more.addEventListener("click", showMore);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  filter();

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    matching = samples.filter(
      (sample) =>
        selects.every((select) => !select.value || sample[select.dataset.field] === select.value) &&
        words.every((word) => sample.haystack.includes(word)),
    );
    shown = 0;
    body.replaceChildren();
    showMore();
  }

  function showMore() {
    const next = matching.slice(shown, shown + PAGE_SIZE);
    body.append(...next.map(row));
    shown += next.length;
    more.hidden = shown >= matching.length;
    document.getElementById("shown").textContent =
      `${shown.toLocaleString("en")} of ${matching.length.toLocaleString("en")} matching answers shown ` +
      `(${samples.length.toLocaleString("en")} in this page).`;
  }

  function row(sample) {
    const line = element("tr");
    const score = sample.score === null ? "–" : `${sample.score.toFixed(2)}${sample.flagged ? ", flagged" : ""}`;
    line.append(
      element("td", sample.system),
      element("td", sample.language_name),
      element("td", sample.label),
      element("td", spaced(sample.outcome), `outcome outcome-${sample.outcome} ${sample.label}`),
      element("td", score),
    );
    const cell = element("td");
    if (sample.label === "benign") {
      cell.append(...exchange(sample));
    } else {
      const fold = element("details");
      const label = sample.label === "harmful" ? "harmful" : "unlabelled";
      fold.append(element("summary", `Show the ${label} prompt and its answer`));
      fold.addEventListener("toggle", () => fold.append(...exchange(sample)), { once: true });
      cell.append(fold);
    }
    line.append(cell);
    return line;
  }

  function exchange(sample) {
    const where = [sample.split, sample.query].filter(Boolean).join(" · ");
    const parts = [
      element("p", `Prompt (${where})`, "who"),
      said(sample.prompt, sample.language),
      element("p", "Answer", "who"),
      said(sample.answer || "(empty)", sample.answer_language || ""),
    ];
    if (sample.reason) parts.push(element("p", `Judge: ${sample.reason}`, "who"));
    return parts;
  }

  function said(text, language) {
    const paragraph = element("p", text, "said");
    paragraph.dir = "auto";
    if (language) paragraph.lang = language;
    return paragraph;
  }
})();
