// What was recorded, what is chosen of it, and what a site amounts to under that choice.

const data = JSON.parse(byId("data").textContent);
const VERDICTS = ["leak", "growing", "unknown", "steady"];
const MEASURES = {
  live: "live bytes",
  growth: "growth",
  objects: "live objects",
  allocated: "allocated bytes",
};

/** The moments of all series, and the window they span. */
const times = data.times;
const whole = [0, times.at(-1)];
const rss = data.rss;

/** The value of a series at any moment: straight between those that are known. */
function at(values, t) {
  let after = times.findIndex((time) => time >= t);
  if (after < 0) after = times.length - 1;
  if (after === 0 || times[after] === t) return values[after];
  const share = (t - times[after - 1]) / (times[after] - times[after - 1]);
  return values[after - 1] + (values[after] - values[after - 1]) * share;
}

const frames = data.frames.map(([name, file, line, module, buildId, offset, address, inlined, reason]) => {
  const text = (index) => (index === null ? null : data.strings[index]);
  return {
    function: text(name), file: text(file), line, module: text(module), build_id: text(buildId), offset, address,
    inlined: inlined === 1, reason: text(reason),
  };
});

/** A frame's name and file, on which frames are matched by the search. */
const textOf = (frame) =>
  `${frame.function ?? ""}\n${frame.file ?? ""}\n${frame.module ?? ""}`.toLowerCase();

/** Memory that the Go runtime maps for itself holds the heap's sites: a kind of its own. */
const RUNTIME = "Go runtime's own";
const sites = data.sites.map((site) => ({
  ...site,
  kind: site.mapped_by_runtime ? RUNTIME : site.kind,
  frames: framesOf(site),
}));
const kinds = [...new Set(sites.map((site) => site.kind))];

/** What stands in a stack without being a frame of the program. */
function note(text) {
  return {
    function: text, file: null, line: null, module: null, build_id: null, offset: null, address: 0,
    inlined: false, reason: null, is_note: true,
  };
}

/** A site's stack, innermost first; where frames are missing there is one that says so. */
function framesOf(site) {
  if (site.stack.length === 0) {
    return [note(site.preexisting_bytes > 0 ? "(from before the attach)" : "(no stack was kept)")];
  }
  const stack = site.stack.map((index) => frames[index]);
  if (site.stack_truncated || site.stack_incomplete !== null) stack.push(note("(outer frames are missing)"));
  return stack;
}

/** What is chosen. Address space that only holds other sites is left out until it is asked for. */
const initial = () => ({
  verdicts: new Set(VERDICTS),
  kinds: new Set(kinds.filter((kind) => kind !== RUNTIME || !kinds.includes("go_heap"))),
  oldest: 0,
  query: "",
  range: [...whole],
  zoomed: false,
  measure: "live",
  inverted: false,
});
let chosen = initial();

const isWhole = () => chosen.range[0] === whole[0] && chosen.range[1] === whole[1];

/** Whether a site passes the filters; the search only marks frames. */
const passes = (site) =>
  chosen.verdicts.has(site.verdict) && chosen.kinds.has(site.kind) && site.oldest_s >= chosen.oldest;

const matches = (frame) => chosen.query !== "" && textOf(frame).includes(chosen.query);

/** A site's live bytes at the end of the range, and what it grew by in it. */
const liveBytes = (site) =>
  chosen.range[1] === whole[1] ? site.live_bytes : at(site.live, chosen.range[1]);
const growthBytes = (site) => liveBytes(site) - at(site.live, chosen.range[0]);

/** What gives a site its width in the flame graph; what has shrunk has none. */
function measured(site) {
  switch (chosen.measure) {
    case "growth": return Math.max(0, growthBytes(site));
    case "objects": return site.live_objects;
    case "allocated": return site.alloc_bytes;
    default: return liveBytes(site);
  }
}

const inMeasure = (value) => (chosen.measure === "objects" ? count(Math.round(value), "object") : bytes(value));

/** The frame that stands for a site: the innermost of the program's own. */
const frameOf = (site) => site.frames[site.told_by ?? 0];

/** A site in one line: this frame, and the library call that it asked for memory through. */
function nameOfSite(site) {
  const frame = frameOf(site);
  const via = site.told_by > 0 ? [" ", element("span", "place", `via ${functionOf(site.frames[0])}`)] : [];
  return [element("span", "function", functionOf(frame)), " ", element("span", "place", placeOf(frame)), ...via];
}
