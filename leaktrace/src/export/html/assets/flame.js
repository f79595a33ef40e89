// The flame graph: the stacks of all sites that pass, put together frame by frame.

const ROW = 22;
/** Narrower frames are not drawn, and no more than so many: the note says how many are left out. */
const NARROWEST = 2.5;
const MOST = 3000;
/** Narrower ones have room for no text. */
const TEXT = 16;
/** A verdict colours a frame from this share of it on. */
const TELLING = 0.05;

const canvas = byId("frames");
let root = null;
let zoomed = null;
/** The frame that has the keyboard. */
let current = null;
/** Elements of the frames that are drawn, by node, and the width they are drawn for. */
let drawnFrames = new Map();
let drawnWidth = 0;

const newNode = (key, frame, parent) => ({
  key, frame, parent,
  depth: parent ? parent.depth + 1 : 0,
  value: 0,
  byVerdict: Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0])),
  sites: [],
  children: new Map(),
});

const keyOf = (frame) => (frame.function === null
  ? `${frame.module}+${frame.offset ?? frame.address}`
  : `${frame.function}\n${frame.file}:${frame.line}`);

/** The tree of the sites that pass, from the outermost frame, or from the innermost. The first frame is
 * the kind: memory of one layer is not added to another's. */
function grow() {
  const tree = newNode("", null, null);
  const add = (node, site, value) => {
    node.value += value;
    node.byVerdict[site.verdict] += value;
    node.sites.push(site);
  };
  for (const site of sites) {
    const value = passes(site) ? measured(site) : 0;
    if (value <= 0) continue;
    add(tree, site, value);
    let node = tree;
    const path = [note(`[${site.kind}]`), ...(chosen.inverted ? site.frames : site.frames.toReversed())];
    for (const frame of path) {
      const key = keyOf(frame);
      let child = node.children.get(key);
      if (!child) {
        child = newNode(key, frame, node);
        node.children.set(key, child);
      }
      add(child, site, value);
      node = child;
    }
  }
  place(tree);
  return tree;
}

/** Gives each node its place as shares of the whole, larger ones first. */
function place(tree) {
  tree.start = 0;
  const open = [tree];
  while (open.length > 0) {
    const node = open.pop();
    node.ordered = [...node.children.values()].sort((a, b) => b.value - a.value);
    let start = node.start;
    for (const child of node.ordered) {
      child.start = start;
      start += child.value / tree.value;
      open.push(child);
    }
  }
}

const nameOf = (node) => (node.frame ? functionOf(node.frame) : "all sites shown");
const worst = (node) => VERDICTS.find((verdict) => node.byVerdict[verdict] >= TELLING * node.value) ?? "steady";
const shareOf = (node) => percent(root.value > 0 ? node.value / root.value : 0);

/** What a frame amounts to, and of which verdicts. */
function amountOf(node) {
  const verdicts = VERDICTS.filter((verdict) => node.byVerdict[verdict] > 0)
    .map((verdict) => `${verdict} ${inMeasure(node.byVerdict[verdict])}`);
  return `${inMeasure(node.value)}, ${shareOf(node)} · ${verdicts.join(", ")}`;
}

const tellOf = (node) =>
  [nameOf(node), node.frame ? placeOf(node.frame) : "", amountOf(node)].filter(Boolean).join(" · ");

function textIn(node) {
  const place = node.frame ? placeOf(node.frame) : "";
  return [element("span", "function", nameOf(node)), ...(place ? [" ", element("span", "place", place)] : [])];
}

/** Builds the tree anew, and goes back to where the reader was as far as it is still there. */
function growAndDraw() {
  const pathOf = (node) => (node?.parent ? [...pathOf(node.parent), node.key] : []);
  const find = (path) => path.reduce((node, key) => node?.children.get(key), root);
  const [zoomPath, currentPath] = [pathOf(zoomed), pathOf(current)];
  root = grow();
  zoomed = find(zoomPath) ?? root;
  current = find(currentPath) ?? zoomed;
  drawFlame();
}

function drawFlame() {
  drawnWidth = canvas.clientWidth;
  const width = Math.max(drawnWidth, 1);
  const span = zoomed.value / root.value;
  const hasFocus = canvas.contains(document.activeElement);
  drawnFrames = new Map();
  let [leftOut, depth] = [0, 0];
  const draw = (node, left, share, isAncestor) => {
    const frame = element("div", `frame ${worst(node)}`);
    if (share * width >= TEXT) frame.append(...textIn(node));
    frame.classList.toggle("ancestor", isAncestor);
    frame.classList.toggle("note", Boolean(node.frame?.is_note) || node.frame?.function === null);
    frame.classList.toggle("hit", node.frame !== null && matches(node.frame));
    frame.style.left = `${left * 100}%`;
    frame.style.width = `${share * 100}%`;
    frame.style.top = `${node.depth * ROW}px`;
    frame.tabIndex = -1;
    frame.setAttribute("role", "treeitem");
    frame.setAttribute("aria-level", node.depth + 1);
    frame.setAttribute("aria-label", tellOf(node));
    frame.node = node;
    drawnFrames.set(node, frame);
    depth = Math.max(depth, node.depth + 1);
  };
  for (let node = zoomed.parent; node; node = node.parent) draw(node, 0, 1, true);
  let row = root.value > 0 ? [zoomed] : [];
  while (row.length > 0) {
    const below = [];
    for (const node of row) {
      const share = node.value / root.value / span;
      if (share * width < NARROWEST || drawnFrames.size >= MOST) {
        leftOut += 1;
        continue;
      }
      draw(node, (node.start - zoomed.start) / span, share, false);
      below.push(...node.ordered);
    }
    row = below;
  }
  if (!drawnFrames.has(current)) current = zoomed;
  canvas.replaceChildren(...drawnFrames.values());
  canvas.style.height = `${depth * ROW}px`;
  canvas.classList.toggle("searching", chosen.query !== "");
  setCurrent(current, hasFocus);
  byId("unzoom").disabled = zoomed === root;
  noteFlame(leftOut);
  tellMatches();
}

function noteFlame(leftOut) {
  const shrunk = chosen.measure !== "growth" ? 0
    : sites.filter((site) => passes(site) && growthBytes(site) < 0).length;
  byId("flame-note").textContent = [
    root.value > 0 ? "" : "Nothing to draw: no site passes the filters, or none has any of this.",
    shrunk > 0 ? `${count(shrunk, "site")} shrank and has no width.`.replace("s shrank and has", "s shrank and have") : "",
    leftOut > 0 ? `${count(leftOut, "frame")}, and what lies below, too narrow to draw: zoom in.` : "",
    !isWhole() && (chosen.measure === "objects" || chosen.measure === "allocated")
      ? "Known for the whole window only, whatever the range." : "",
  ].filter(Boolean).join(" ");
}

/** How many frames the search has found, and what goes through them. */
function tellMatches() {
  let [found, value] = [0, 0];
  const open = [[root, false]];
  while (open.length > 0) {
    const [node, isCounted] = open.pop();
    const hit = node.frame !== null && matches(node.frame);
    if (hit) found += 1;
    if (hit && !isCounted) value += node.value;
    for (const child of node.ordered) open.push([child, isCounted || hit]);
  }
  const share = root.value > 0 ? value / root.value : 0;
  byId("matches").textContent = chosen.query === "" ? ""
    : `${count(found, "frame")}: ${inMeasure(value)}, ${percent(share)}`;
}

/** The one frame that Tab reaches. */
function setCurrent(node, takeFocus) {
  drawnFrames.get(current)?.setAttribute("tabindex", "-1");
  current = node;
  const frame = drawnFrames.get(node);
  if (!frame) return;
  frame.tabIndex = 0;
  if (takeFocus) frame.focus();
  readFrame(node);
}

const readFrame = (node) => { byId("frame-reading").textContent = root.value > 0 ? tellOf(node) : ""; };

function zoomTo(node) {
  zoomed = node;
  current = node;
  drawFlame();
}

/** The next drawn frame in a direction, or none. */
function neighbour(node, key) {
  const row = [...drawnFrames.keys()].filter((other) => other.depth === node.depth)
    .sort((a, b) => a.start - b.start);
  switch (key) {
    case "ArrowUp": return node.parent;
    case "ArrowDown": return node.ordered.find((child) => drawnFrames.has(child));
    case "ArrowLeft": return row[row.indexOf(node) - 1];
    case "ArrowRight": return row[row.indexOf(node) + 1];
    case "Home": return root;
    default: return undefined;
  }
}

function listenToFlame(show) {
  const nodeOf = (event) => event.target.closest(".frame")?.node;
  const choose = (node) => {
    zoomTo(node);
    drawnFrames.get(node).focus({ preventScroll: true });
    show(node);
  };
  canvas.addEventListener("click", (event) => { if (nodeOf(event)) choose(nodeOf(event)); });
  canvas.addEventListener("pointerover", (event) => { if (nodeOf(event)) readFrame(nodeOf(event)); });
  canvas.addEventListener("pointerleave", () => readFrame(current));
  canvas.addEventListener("focusin", (event) => { if (nodeOf(event)) setCurrent(nodeOf(event), false); });
  canvas.addEventListener("keydown", (event) => {
    const node = nodeOf(event);
    const next = node && neighbour(node, event.key);
    if (next) setCurrent(next, true);
    else if (node && (event.key === "Enter" || event.key === " ")) choose(node);
    else if (event.key === "Escape" && zoomed.parent) choose(zoomed.parent);
    else return;
    event.preventDefault();
  });
  byId("unzoom").addEventListener("click", () => zoomTo(root));
  new ResizeObserver(() => { if (canvas.clientWidth !== drawnWidth) drawFlame(); }).observe(canvas);
}
