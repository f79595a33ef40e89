// What is known of one frame of the flame graph, and the sites that go through it.

const SITES_SHOWN = 10;

function showDetail(node) {
  const panel = byId("detail");
  panel.hidden = node.frame === null;
  if (node.frame === null) return;
  const largest = [...node.sites].sort((a, b) => measured(b) - measured(a));
  const list = element("ul", "through", ...largest.slice(0, SITES_SHOWN).map(siteLine));
  const more = largest.length - SITES_SHOWN;
  if (more > 0) list.append(element("li", "aside", `and ${count(more, "more site")}`));
  panel.replaceChildren(
    element("h3", "", functionOf(node.frame)),
    element("p", "", amountOf(node)),
    node.frame.is_note ? "" : definitions("known", knownOf(node.frame)),
    element("h4", "", `${count(largest.length, "site")} through this frame`),
    list,
  );
}

/** Lines, module and the rest; the names of a frame are text. */
function knownOf(frame) {
  const hex = (value) => (value === null ? null : `0x${value.toString(16)}`);
  const text = (value) => (value === null || value === undefined ? null : safe(value));
  return [
    ["source", frame.file === null ? null : safe(frame.file) + (frame.line === null ? "" : `:${frame.line}`)],
    ["module", text(frame.module)],
    ["build id", text(frame.build_id)],
    ["offset", hex(frame.offset)],
    ["address", hex(frame.address)],
    ["inlined", frame.inlined ? "into its caller" : null],
    ["no name because", text(frame.reason)],
  ];
}

function siteLine(site) {
  const link = element("a", "", `#${site.rank} `, ...nameOfSite(site));
  link.href = `#site-${site.rank}`;
  return element("li", "", element("span", `verdict ${site.verdict}`, site.verdict), " ", link, " ",
    element("span", "number", inMeasure(measured(site))));
}
