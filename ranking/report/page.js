// What every page has: its plots, tables that sort, buttons that copy, and a choice among articles.
const data = JSON.parse(document.getElementById("data").textContent);

function say(text) { document.getElementById("said").textContent = text; }

function draw(inside) {
  for (const node of inside.querySelectorAll(".plot")) {
    const figure = data.figures[node.id];
    if (figure && !node.classList.contains("js-plotly-plot")) Plotly.newPlot(node, figure.data, figure.layout, {responsive: true, displayModeBar: false});
  }
}

// Paper is narrower than the window, and no resize event tells the plots.
let widths = [];
addEventListener("beforeprint", () => {
  const plots = [...document.querySelectorAll(".js-plotly-plot")].filter((node) => node.offsetParent);
  widths = plots.map((node) => [node, node.clientWidth]);
  for (const [node, width] of widths) Plotly.relayout(node, {width: Math.min(width, node.closest(".columns") ? 330 : 690)});
});
addEventListener("afterprint", () => {
  for (const [node] of widths) Plotly.relayout(node, {width: null, autosize: true});
});

function copy(text, button) {
  const done = () => {
    const label = button.dataset.label ?? (button.dataset.label = button.textContent);
    button.textContent = "Copied";
    say("Copied");
    setTimeout(() => { button.textContent = label; say(""); }, 1200);
  };
  const select = () => {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    if (document.execCommand("copy")) done();
    area.remove();
    button.focus();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, select); else select();
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button.dataset.copy, button);
});

// A cell sorts by its data-value, else by its text, 1,200 and +1.5% as numbers; a row that lacks the cell or has no value in it stays at the end.
function sort(head) {
  const table = head.closest("table"), rows = [...table.tBodies[0].rows];
  const value = (row) => {
    const cell = row.cells[head.cellIndex], text = cell && (cell.dataset.value ?? cell.textContent.trim());
    return !cell || cell.colSpan > 1 || text === "" || text === "\u2013" ? null : text.replace(/^\+|(?<=\d),(?=\d)|%$/g, "");
  };
  const values = new Map(rows.map((row) => [row, value(row)]));
  const numbers = [...values.values()].every((text) => text === null || !Number.isNaN(Number(text)));
  const first = numbers ? "descending" : "ascending", other = numbers ? "ascending" : "descending";
  const order = head.ariaSort === first ? other : first, sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => numbers ? a - b : a.localeCompare(b, "en", {numeric: true});
  rows.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    return x === null || y === null ? (x === null) - (y === null) : sign * compare(x, y);
  });
  for (const cell of head.parentNode.cells) if (cell.ariaSort) cell.ariaSort = cell === head ? order : "none";
  table.tBodies[0].append(...rows);
  say(`Sorted by ${head.textContent}, ${order}`);
}
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button.parentNode));

// One article at a time where a select chooses among them.
const articles = [...document.querySelectorAll("article")], chosen = document.getElementById("chosen");
function show() {
  for (const article of articles) article.hidden = chosen !== null && article.id !== chosen.value;
  for (const article of articles) if (!article.hidden) draw(article);
}
if (chosen) chosen.addEventListener("change", show);
show();
for (const section of document.querySelectorAll("section")) if (!section.closest("article")) draw(section);
