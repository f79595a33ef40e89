// The timeline: live bytes of the largest sites, stacked, against the resident memory.

const LAYERS = 8;
const MARGIN = { left: 68, right: 12, top: 10, bottom: 24 };
const plot = byId("plot");
/** What the plot shows at the moment: its scales and its layers, the topmost last. */
let view = null;
/** Where the reading line stands, in seconds; null: at the end of the range. */
let reading = null;

/** The largest sites that pass, those that leak on top; the rest as one layer at the bottom. */
function layers(passing, [from, to]) {
  const seen = times.map((t, index) => index).filter((index) => times[index] >= from && times[index] <= to);
  const peak = (site) => seen.reduce((most, index) => Math.max(most, site.live[index]), at(site.live, to));
  const ranked = passing.map((site) => ({ site, peak: peak(site) }))
    .filter((one) => one.peak > 0)
    .sort((a, b) => b.peak - a.peak);
  const order = (site) => VERDICTS.indexOf(site.verdict);
  const largest = ranked.slice(0, LAYERS).map((one) => one.site);
  const shades = Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0]));
  const stacked = largest.map((site) => {
    const opacity = 1 - 0.16 * (shades[site.verdict] % 5);
    shades[site.verdict] += 1;
    return { site, values: site.live, className: site.verdict, opacity };
  }).reverse().sort((a, b) => order(b.site) - order(a.site));
  const rest = ranked.slice(LAYERS).map((one) => one.site);
  if (rest.length > 0) {
    const values = new Float64Array(times.length);
    for (const site of rest) site.live.forEach((value, index) => { values[index] += value; });
    stacked.unshift({ name: count(rest.length, "other site"), values, className: "rest", opacity: 1 });
  }
  return stacked;
}

/** Round steps: a few to the axis. */
const byteStep = (most) => 2 ** Math.ceil(Math.log2(Math.max(most, 5) / 5));
function secondStep(length) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  return steps.find((step) => length / step <= 9) ?? 86400;
}

function drawTimeline() {
  const passing = sites.filter(passes);
  const domain = chosen.zoomed ? chosen.range : whole;
  const inside = times.filter((t) => t > domain[0] && t < domain[1]);
  const points = [domain[0], ...inside, domain[1]];
  const stacked = layers(passing, domain);
  const base = points.map(() => 0);
  for (const layer of stacked) {
    layer.low = [...base];
    points.forEach((t, index) => { base[index] += at(layer.values, t); });
    layer.high = [...base];
  }
  const resident = rss ? points.map((t) => at(rss, t)) : [];
  const most = Math.max(1024, ...base, ...resident) * 1.04;
  const [width, height] = [Math.max(plot.clientWidth, 280), 280];
  const x = (t) => MARGIN.left + ((t - domain[0]) / (domain[1] - domain[0])) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - (value / most) * (height - MARGIN.top - MARGIN.bottom);
  view = { domain, stacked, x, width, height, drawnWidth: plot.clientWidth };

  const path = (t, values) => points.map((time, index) => `${x(time).toFixed(1)},${y(values[index]).toFixed(1)}`);
  const drawn = [];
  const step = byteStep(most);
  for (let value = 0; value <= most; value += step) {
    drawn.push(shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }));
    drawn.push(shape("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" },
      bytes(value).replace(/\.0+ /, " ")));
  }
  const seconds = secondStep(domain[1] - domain[0]);
  for (let t = Math.ceil(domain[0] / seconds) * seconds; t <= domain[1]; t += seconds) {
    drawn.push(shape("text", { class: "tick", x: x(t), y: height - 6, "text-anchor": "middle" }, moment(t)));
  }
  for (const layer of stacked) {
    const outline = [...path(points, layer.high), ...path(points, layer.low).reverse()].join(" ");
    drawn.push(shape("polygon", { class: `area ${layer.className}`, "fill-opacity": layer.opacity, points: outline }));
  }
  if (rss) drawn.push(shape("polyline", { class: "rss", points: path(points, resident).join(" ") }));
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.setAttribute("height", height);
  plot.replaceChildren(...drawn, shape("g", { id: "brush" }),
    shape("line", { id: "line", class: "line", y1: MARGIN.top, y2: height - MARGIN.bottom }));
  plot.setAttribute("aria-label", `Live bytes of ${count(passing.length, "site")} over ${moment(whole[1] - whole[0])}`);
  const left = sites.length - passing.length;
  byId("timeline-note").textContent = [
    "Areas are what is live, by site" + (rss ? "; the line is all that is resident." : "."),
    left > 0 ? `${count(left, "site")} left out by the filters.` : "",
    sites.some((site) => site.kind === RUNTIME) && !chosen.kinds.has(RUNTIME)
      ? "What the Go runtime maps for itself is left out: the Go heap's sites lie in it." : "",
  ].join(" ");
  drawLegend();
  drawBrush(chosen.range);
  read(reading);
}

function drawLegend() {
  const rows = [...view.stacked].reverse().map((layer) => {
    const swatch = element("span", `swatch ${layer.className}`);
    swatch.style.opacity = layer.opacity;
    const value = element("span", "number");
    layer.reading = value;
    if (!layer.site) return element("li", "", swatch, element("span", "name", layer.name), value);
    const link = element("a", "name", ...nameOfSite(layer.site));
    link.href = `#site-${layer.site.rank}`;
    return element("li", "", swatch, link, value);
  });
  if (rss) {
    view.resident = element("span", "number");
    rows.unshift(element("li", "", element("span", "swatch rss"), element("span", "name", "resident memory"), view.resident));
  }
  byId("legend").replaceChildren(...rows);
}

/** Dims what is outside the range. */
function drawBrush([from, to]) {
  const [start, end] = view.domain.map(view.x);
  const [left, right] = [from, to].map((t) => Math.min(end, Math.max(start, view.x(t))));
  const height = view.height - MARGIN.top - MARGIN.bottom;
  const outside = (x, width) => shape("rect", { class: "outside", x, y: MARGIN.top, width: Math.max(0, width), height });
  const edge = (x) => shape("line", { class: "edge", x1: x, x2: x, y1: MARGIN.top, y2: MARGIN.top + height });
  const edges = from === view.domain[0] && to === view.domain[1] ? [] : [edge(left), edge(right)];
  byId("brush").replaceChildren(outside(start, left - start), outside(right, end - right), ...edges);
}

/** Moves the reading line and tells every layer's value there. */
function read(t) {
  reading = t;
  const stands = Math.min(view.domain[1], Math.max(view.domain[0], t ?? chosen.range[1]));
  const line = byId("line");
  line.setAttribute("x1", view.x(stands));
  line.setAttribute("x2", view.x(stands));
  line.classList.toggle("shown", t !== null);
  let sum = 0;
  for (const layer of view.stacked) {
    const value = at(layer.values, stands);
    sum += value;
    layer.reading.textContent = bytes(value);
  }
  if (view.resident) view.resident.textContent = bytes(at(rss, stands));
  byId("reading").textContent = `At ${moment(stands)}: ${bytes(sum)} live in the sites shown`;
}

/** The moment under a pointer, within the domain. */
function momentAt(event) {
  const box = plot.getBoundingClientRect();
  const [start, end] = view.domain.map(view.x);
  const x = ((event.clientX - box.left) / box.width) * view.width;
  const share = (x - start) / (end - start);
  return view.domain[0] + Math.min(1, Math.max(0, share)) * (view.domain[1] - view.domain[0]);
}

/** `choose(from, to)` is called when a range was dragged. */
function listenToTimeline(choose) {
  let start = null;
  const span = (event) => [start, momentAt(event)].sort((a, b) => a - b);
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    plot.setPointerCapture(event.pointerId);
    start = momentAt(event);
  });
  plot.addEventListener("pointermove", (event) => {
    read(momentAt(event));
    if (start !== null) drawBrush(span(event));
  });
  plot.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [from, to] = span(event);
    start = null;
    if (view.x(to) - view.x(from) > 4) choose(from, to);
    else drawBrush(chosen.range);
  });
  plot.addEventListener("pointercancel", () => { start = null; drawBrush(chosen.range); });
  plot.addEventListener("pointerleave", () => read(null));
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const stands = reading ?? chosen.range[1];
    const step = (view.domain[1] - view.domain[0]) / 60;
    read(Math.min(view.domain[1], Math.max(view.domain[0], stands + steps[event.key] * step)));
  });
  plot.addEventListener("blur", () => read(null));
}
