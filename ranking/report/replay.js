// The replay page: rows of the what-if table to compare, and example requests that are ranked as weights move.
const whatIf = document.getElementById("what-if-table"), compare = document.getElementById("compare");
function compared() {
  const rows = [...whatIf.tBodies[0].rows], only = compare.ariaPressed === "true";
  for (const row of rows) row.hidden = only && !row.querySelector("input").checked;
}
whatIf.addEventListener("change", () => {
  compare.disabled = !whatIf.querySelector("input:checked");
  if (compare.disabled) compare.ariaPressed = "false";
  compared();
});
compare.addEventListener("click", () => {
  compare.ariaPressed = String(compare.ariaPressed !== "true");
  compared();
});

const live = data.replay, float32 = Math.fround;

// As FusionWeights has them: the largest is 1, ten digits. Null where all are 0.
function canonical(weights) {
  const largest = Math.max(...weights.map(Math.abs));
  return largest ? weights.map((weight) => Number((weight / largest).toFixed(10))) : null;
}

// With the differences of the request's segment, within the bounds.
function inSegment(request, weights) {
  const shift = live.segments[request.segment] ?? [];
  return weights.map((weight, j) => shift[j] ? Math.min(Math.max(weight + shift[j], live.bounds[j][0]), live.bounds[j][1]) : weight);
}

// As fuse() adds them up, in single precision: sum of weight times term.
function scores(request, weights) {
  const used = inSegment(request, weights).map(float32);
  return request.terms.map((terms) => terms.reduce((sum, term, j) => used[j] ? float32(sum + float32(used[j] * float32(term))) : sum, 0));
}

// Row numbers, the best first; of equal scores the first row.
function ranked(request, weights) {
  const found = scores(request, weights);
  return {scores: found, order: found.map((_, row) => row).sort((a, b) => found[b] - found[a])};
}

function element(name, attributes, ...children) {
  const svg = ["svg", "rect", "line"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Parts that add go to the right of zero, those that take away to the left.
function bar(terms, weights, scale) {
  const width = 220, zero = width * scale.low / (scale.low + scale.high || 1), unit = width / (scale.low + scale.high || 1);
  const adds = terms.map((term, j) => weights[j] * term);
  const words = live.parts.map((part, j) => `${part} ${adds[j] < 0 ? "" : "+"}${adds[j].toFixed(2)}`).join(", ");
  const node = element("svg", {viewBox: `0 0 ${width} 14`, preserveAspectRatio: "none", class: "bar", role: "img", "aria-label": words});
  let left = zero, right = zero;
  adds.forEach((value, j) => {
    const size = Math.abs(value) * unit;
    if (value < 0) left -= size;
    if (size) node.append(element("rect", {x: value < 0 ? left : right, y: 1, width: Math.max(size - 0.6, 0.4), height: 12, fill: live.colors[j]}));
    if (value > 0) right += size;
  });
  node.append(element("line", {x1: zero, x2: zero, y1: 0, y2: 14, class: "zero"}));
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = words;
  node.append(title);
  return node;
}

function happened(request, row) {
  const place = request.position[row];
  if (place < 0) return ["not shown"];
  const what = request.conversion[row] > 0 ? "\u2605 converted" : request.click[row] > 0 ? "\u25cf clicked" : "";
  return [`place ${place + 1}`, ...(what ? [element("small", {class: "up"}, what)] : [])];
}

function examplesOf() {
  const choice = document.getElementById("request"), body = document.getElementById("ranking").tBodies[0];
  const sliders = live.parts.map((part) => document.getElementById(`weight-${part}`));
  const outputs = sliders.map((slider) => slider.parentNode.querySelector("output"));
  const buttons = [...document.querySelectorAll("[data-preset]")], button = document.getElementById("copy-live");
  let weights = live.presets[live.start] ?? live.presets.Production ?? live.parts.map(() => 1);

  function line(request, found, row, place, before, scale, used) {
    const up = before - place, item = element("div", {class: "wrap"}, String(request.items[row]));
    const category = request.categories?.[row];
    if (category) item.append(element("small", {}, String(category)));
    const moved = up ? element("span", {class: up > 0 ? "up" : "down"}, `${up > 0 ? "\u25b2" : "\u25bc"}${Math.abs(up)}`) : "";
    const raw = Object.entries(request.raw ?? {}).map(([part, values]) => `${part} ${values[row] == null ? "missing" : Number(values[row]).toPrecision(3)}`);
    const node = element("tr", {"data-row": row, title: raw.join(", ")});
    if (place >= request.slots) node.className = "below";
    if (place === request.slots - 1) node.className = "last";
    const cells = [[`${place + 1} `, moved], [item], [bar(request.terms[row], used, scale)], [found.scores[row].toFixed(3)], happened(request, row)];
    node.append(...cells.map((content) => element("td", {}, ...content)));
    return node;
  }

  function kept(request, order) {
    const before = ranked(request, canonical(live.presets.Production)).order, slots = Math.min(request.slots, before.length);
    const shown = new Set(before.slice(0, slots));
    return [order.slice(0, slots).filter((row) => shown.has(row)).length, slots];
  }

  function rank() {
    const used = canonical(weights), request = live.requests[Number(choice.value)], note = document.getElementById("kept");
    sliders.forEach((slider, j) => { slider.value = weights[j]; outputs[j].textContent = weights[j].toFixed(2); });
    for (const one of buttons) one.ariaPressed = String(live.presets[one.dataset.preset].every((weight, j) => weight === weights[j]));
    button.disabled = used === null;
    if (used === null) {
      note.textContent = "All weights are 0, and that ranks nothing.";
      body.replaceChildren();
      return;
    }
    button.dataset.copy = JSON.stringify(Object.fromEntries(live.parts.map((part, j) => [part, used[j]])));
    const found = ranked(request, used), before = new Map(ranked(request, canonical(live.presets.Production)).order.map((row, place) => [row, place]));
    const here = inSegment(request, used), adds = request.terms.map((terms) => terms.map((term, j) => here[j] * term));
    const side = (sign) => Math.max(...adds.map((row) => row.reduce((sum, value) => sum + Math.max(sign * value, 0), 0)));
    const scale = {low: side(-1), high: side(1)};
    body.replaceChildren(...found.order.map((row, place) => line(request, found, row, place, before.get(row), scale, here)));
    const [same, slots] = kept(request, found.order), all = live.requests.map((one) => kept(one, ranked(one, used).order));
    const share = all.reduce((sum, one) => sum + one[0], 0) / all.reduce((sum, one) => sum + one[1], 0);
    const differs = live.parts.flatMap((part, j) => here[j] === used[j] ? [] : [`${part} ${here[j].toFixed(2)}`]).join(", ");
    note.textContent = `Of the ${slots} items shown, ${same} are production's too; over all ${all.length} requests ${Math.round(100 * share)}%.`
      + (differs ? ` In the segment ${request.segment}: ${differs}.` : "");
  }

  choice.addEventListener("change", rank);
  sliders.forEach((slider, j) => slider.addEventListener("input", () => {
    weights = weights.map((weight, at) => at === j ? Number(slider.value) : weight);
    rank();
  }));
  for (const one of buttons) one.addEventListener("click", () => { weights = live.presets[one.dataset.preset]; rank(); });
  rank();
}
if (live) examplesOf();
