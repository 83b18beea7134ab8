"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/* Okabe & Ito's colours, told apart by colour-blind readers too; rarer layer types share a grey. */
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800"];
const REST = "#8a94a0";
const COLOR = new Map(data.kinds.slice(0, PALETTE.length).map((k, i) => [k.name, PALETTE[i]]));
const color = (kind) => COLOR.get(kind) ?? REST;

const POINTS = 1500;
const ROWS = 100;
const BOXES = 700; /* of the icicle drawn at once; zooming shows deeper ones */

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
function si(value, unit) {
  if (!value) return `0 ${unit}`;
  const rounded = Number(value.toPrecision(3));
  const [scale, prefix] = PREFIXES.find(([s]) => rounded >= s) ?? PREFIXES.at(-1);
  return `${(rounded / scale).toPrecision(3).replace(/e\+.*/, "")} ${prefix}${unit}`;
}
const count = (n) => (n ? si(n, "").trim() : "-");
const percent = (part) => `${((data.energy_j ? part / data.energy_j : 0) * 100).toFixed(1)}%`;
const range = (x) => `${si(x.energy_low_j, "J")} – ${si(x.energy_high_j, "J")}`;
/* Plotly reads a few tags in texts: names of a model are shown as they are */
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/* Charts, drawn again when the reader's colour scheme changes */

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: read("ink"), dim: read("dim"), line: read("line"), card: read("card"), module: read("module") };
}

function layout(t, more) {
  return {
    font: { color: t.ink, family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 8, b: 8 },
    hoverlabel: { bgcolor: t.card, bordercolor: t.line, font: { color: t.ink } },
    ...more,
  };
}

const axis = (t, title, more) => ({
  title: { text: title }, nticks: innerWidth < 600 ? 4 : 7, tickangle: 0, gridcolor: t.line, zerolinecolor: t.line, linecolor: t.line, automargin: true, ...more,
});
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };

/* Levels to draw at once: as many as hold BOXES boxes, the outermost parts at least */
function levels(parents) {
  const depths = [];
  parents.forEach((parent) => depths.push(parent < 0 ? 1 : depths[parent] + 1));
  let depth = 2;
  while (depth < 7 && depths.filter((d) => d <= depth + 1).length <= BOXES) depth++;
  return depth;
}

function drawIcicle(t) {
  const tree = data.tree;
  /* only leaves carry values, so that rounding never makes parts exceed their module */
  const inner = new Set(tree.parents);
  Plotly.react("icicle", [{
    type: "icicle",
    ids: tree.labels.map((_, i) => `${i}`),
    parents: tree.parents.map((parent) => (parent < 0 ? "" : `${parent}`)),
    labels: tree.labels.map(plain),
    values: tree.energy_j.map((v, i) => (inner.has(i) ? 0 : v)),
    branchvalues: "remainder",
    sort: false,
    maxdepth: levels(tree.parents),
    text: tree.energy_j.map((v) => si(v, "J")),
    customdata: tree.energy_j.map((v, i) => [percent(v), `${tree.calls[i]} operation${tree.calls[i] > 1 ? "s" : ""}`]),
    textinfo: "label+text",
    hovertemplate: "<b>%{label}</b><br>%{text} predicted, %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    marker: {
      colors: tree.kinds.map((kind) => (kind ? color(kind) : t.module)),
      line: { color: t.card, width: 1 },
    },
    tiling: { orientation: "v", pad: 0 },
    pathbar: { thickness: 26, textfont: { color: t.ink } },
    root: { color: t.module },
  }], layout(t, { margin: { l: 8, r: 8, t: 34, b: 8 } }), CONFIG);
}

function drawKinds(t) {
  const kinds = data.kinds.slice(0, 12).reverse();
  Plotly.react("kinds", [{
    type: "bar",
    orientation: "h",
    y: kinds.map((k) => plain(k.name)),
    x: kinds.map((k) => k.energy_j),
    customdata: kinds.map((k) => [si(k.energy_j, "J"), range(k), percent(k.energy_j), k.calls]),
    hovertemplate: "<b>%{y}</b><br>%{customdata[0]} predicted (%{customdata[1]})<br>%{customdata[2]}, calls: %{customdata[3]}<extra></extra>",
    marker: { color: kinds.map((k) => color(k.name)) },
    error_x: {
      type: "data", symmetric: false, color: t.dim, thickness: 1.5,
      array: kinds.map((k) => k.energy_high_j - k.energy_j),
      arrayminus: kinds.map((k) => k.energy_j - k.energy_low_j),
    },
  }], layout(t, {
    xaxis: axis(t, "joules, 90 % interval", { tickformat: "~s", ticksuffix: "J", rangemode: "tozero" }),
    yaxis: axis(t, "", { type: "category", dtick: 1 }),
  }), CONFIG);
}

function drawScatter(t) {
  const priced = data.layers.filter((l) => l.energy_j > 0 && l.time_s > 0);
  const shown = priced.toSorted((a, b) => b.energy_j - a.energy_j).slice(0, POINTS);
  const mean = data.time_s ? si(data.energy_j / data.time_s, "W") : "none";
  byId("scatter-hint").textContent = `One point an operation${
    shown.length < priced.length ? `, the ${POINTS} costliest of ${priced.length}` : ""
  }; mean power ${mean}. Colours as in the bars, logarithmic axes.`;
  const groups = Map.groupBy(shown, (l) => (COLOR.has(l.kind) ? l.kind : "other"));
  const traces = [...groups].map(([kind, layers]) => ({
    type: "scatter",
    mode: "markers",
    name: plain(kind),
    x: layers.map((l) => l.time_s),
    y: layers.map((l) => l.energy_j),
    customdata: layers.map((l) => [plain(l.path || "(model itself)"), plain(l.op), si(l.energy_j, "J"), range(l), si(l.time_s, "s"), si(l.energy_j / l.time_s, "W")]),
    hovertemplate: "<b>%{customdata[0]}</b> %{customdata[1]}<br>%{customdata[2]} predicted (%{customdata[3]})<br>%{customdata[4]}, %{customdata[5]}<extra></extra>",
    marker: { color: color(kind), size: 8, opacity: 0.75 },
  }));
  Plotly.react("scatter", traces, layout(t, {
    xaxis: axis(t, "seconds", { type: "log", dtick: 1, tickformat: "~s", ticksuffix: "s" }),
    yaxis: axis(t, "joules", { type: "log", dtick: 1, tickformat: "~s", ticksuffix: "J" }),
    showlegend: false,
  }), CONFIG);
}

function draw() {
  const t = theme();
  drawIcicle(t);
  drawKinds(t);
  drawScatter(t);
}

/* The table: all rows are sorted and searched, as many as asked for are in the document */

const COLUMNS = [
  ["#", (l) => l.index, (l) => l.index + 1, "number"],
  ["module", (l) => l.path, (l) => l.path || "(model itself)", ""],
  ["operation", (l) => l.op, (l) => l.op, ""],
  ["layer type", (l) => l.kind, (l) => l.kind, ""],
  ["energy", (l) => l.energy_j, (l) => si(l.energy_j, "J"), "number"],
  ["90 % interval", (l) => l.energy_high_j, range, "number"],
  ["share", (l) => l.energy_j, (l) => percent(l.energy_j), "number"],
  ["time", (l) => l.time_s, (l) => si(l.time_s, "s"), "number"],
  ["MACs", (l) => l.macs, (l) => count(l.macs), "number"],
  ["bytes", (l) => l.bytes, (l) => si(l.bytes, "B"), "number"],
  ["basis", status, status, ""],
  ["parameters", (l) => l.params, (l) => l.params, "params"],
];
function status(l) {
  if (!l.modelled) return "no model of its own";
  return l.outside ? "outside the fitted range" : "fitted range";
}

const view = { column: 4, descending: true, text: "", rows: ROWS };
data.layers.forEach((l, i) => { l.index = i; });

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function drawHeader() {
  const cells = COLUMNS.map(([name, , , className], i) => {
    const cell = element("th", "", className);
    cell.scope = "col";
    cell.setAttribute("aria-sort", i !== view.column ? "none" : view.descending ? "descending" : "ascending");
    const button = element("button", name);
    button.type = "button";
    button.addEventListener("click", () => {
      view.descending = i === view.column ? !view.descending : COLUMNS[i][3] === "number" && i > 0;
      view.column = i;
      drawTable();
      byId("layers").querySelectorAll("th button")[i].focus();
    });
    cell.append(button);
    return cell;
  });
  byId("layers").tHead.rows[0].replaceChildren(...cells);
}

function drawTable() {
  drawHeader();
  const key = COLUMNS[view.column][1];
  const sign = view.descending ? -1 : 1;
  const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  const wanted = view.text.toLowerCase();
  const found = data.layers
    .filter((l) => [l.path, l.op, l.kind].some((s) => s.toLowerCase().includes(wanted)))
    .sort((a, b) => sign * order(key(a), key(b)) || a.index - b.index);
  byId("layers").tBodies[0].replaceChildren(...found.slice(0, view.rows).map((layer) => {
    const row = document.createElement("tr");
    row.append(...COLUMNS.map(([, , text, className]) => element("td", text(layer), className)));
    return row;
  }));
  const shown = Math.min(view.rows, found.length);
  byId("found").textContent = `${shown} of ${data.layers.length} operations`;
  byId("more").hidden = shown === found.length;
}

function wireTable() {
  byId("find").addEventListener("input", (event) => {
    Object.assign(view, { text: event.target.value, rows: ROWS });
    drawTable();
  });
  byId("more").addEventListener("click", () => {
    view.rows *= 4;
    drawTable();
  });
}

/* Lists and sums */

function drawOutside() {
  const outside = data.layers.filter((l) => l.outside).sort((a, b) => b.energy_j - a.energy_j);
  const lines = outside.slice(0, 10).map((l) => `${l.path || l.op}, ${si(l.energy_j, "J")}: ${l.outside}`);
  const rest = outside.length - lines.length;
  if (rest > 0) lines.push(`${rest} more; sort the table by its column basis`);
  if (!outside.length) lines.push("nothing");
  byId("outside").replaceChildren(...lines.map((line) => element("li", line)));
}

function drawFootprint() {
  const rates = byId("rates").elements;
  const passes = Number(rates.passes.value);
  const say = (unit, perKwh, format) => {
    const [mid, low, high] = [data.energy_j, data.energy_low_j, data.energy_high_j]
      .map((joules) => format(joules / 3.6e6 * passes * perKwh));
    return [element("dt", unit), element("dd", `${mid} (${low} – ${high})`)];
  };
  const currency = data.rates.currency;
  byId("footprint").replaceChildren(
    ...say("electricity", 1000, (v) => si(v, "Wh")),
    ...say("carbon", Number(rates.intensity.value), (v) => `${si(v, "g")} CO₂e`),
    ...say("cost", Number(rates.price.value), (v) => `${v.toPrecision(3)} ${currency}`),
  );
}

function wireFootprint() {
  const rates = byId("rates");
  rates.elements.intensity.value = data.rates.intensity_g_per_kwh;
  rates.elements.price.value = data.rates.price_per_kwh;
  byId("currency").textContent = data.rates.currency;
  rates.addEventListener("input", drawFootprint);
  rates.addEventListener("submit", (event) => event.preventDefault());
}

wireTable();
wireFootprint();
drawTable();
drawOutside();
drawFootprint();
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.documentElement.dataset.drawn = "true";
