// The list of sites: rows that are written already, and those that are made of text when asked for.

const PORTION = 200;
const more = byId("more");
const written = document.querySelectorAll("#sites > .site");
const others = sites.slice(written.length);
/** A row's elements, by site. */
const rows = new Map([...written].map((row, index) => [sites[index], partsOf(row)]));
/** Lines about the other sites, without the first, which a row tells; known when they are asked for. */
let texts = null;
/** How many of the others have a row at most. */
let most = PORTION;

function partsOf(row) {
  return { row, live: row.querySelector(".live"), growth: row.querySelector(".growth") };
}

/** What is live at the end of the range, and the growth in it. */
function tellRange(site, { live, growth }) {
  const [from, to] = chosen.range;
  const rate = isWhole() ? site.growth_bytes_per_s : growthBytes(site) / (to - from);
  live.textContent = bytes(liveBytes(site));
  growth.textContent = `${signedBytes(rate)}/s`;
}

const isShown = (site) => passes(site) && (chosen.query === "" || site.frames.some(matches));

/** Rows that do not pass are hidden; the others tell of the range. */
function updateRows() {
  const [from, to] = chosen.range;
  let shown = 0;
  for (const site of sites.slice(0, written.length)) {
    const parts = rows.get(site);
    parts.row.hidden = !isShown(site);
    if (parts.row.hidden) continue;
    shown += 1;
    tellRange(site, parts);
  }
  const passing = others.filter(isShown);
  shown += passing.length;
  if (more) {
    byId("more-count").textContent =
      passing.length === others.length ? "" : `, ${thousands(passing.length)} of them shown`;
    if (more.open) updateOthers(passing);
  }
  byId("live-label").textContent = isWhole() ? "live" : `live at ${moment(to)}`;
  byId("growth-label").textContent = isWhole() ? "growth" : `${moment(from)} to ${moment(to)}`;
  byId("site-count").textContent = shown === sites.length ? thousands(shown)
    : `${thousands(shown)} of ${thousands(sites.length)}`;
  byId("no-match").hidden = shown > 0 || sites.length === 0;
}

/** Rows for the first of the others that pass, and for one that is looked for. */
function updateOthers(passing, soughtAfter = null) {
  texts ??= byId("others").textContent.split("\n\n").map((text) => text.slice(text.indexOf("\n") + 1));
  const first = passing.slice(0, most);
  const listed = soughtAfter === null || first.includes(soughtAfter) ? first : [soughtAfter, ...first];
  const left = passing.length - first.length;
  const next = element("button", "", `Show ${thousands(Math.min(left, PORTION))} of ${thousands(left)} more`);
  next.addEventListener("click", () => { most += PORTION; updateRows(); });
  byId("others").replaceChildren(...listed.map(otherRow), ...(left > 0 ? [next] : []));
}

function otherRow(site) {
  if (!rows.has(site)) {
    const row = element("details", "site",
      element("summary", "row",
        element("span", "rank", String(site.rank)),
        element("span", `verdict ${site.verdict}`, site.verdict),
        element("span", "kind", site.kind),
        element("span", "where", ...nameOfSite(site)),
        element("span", "number live"),
        element("span", "number growth")),
      element("pre", "body", texts[others.indexOf(site)]));
    row.id = `site-${site.rank}`;
    rows.set(site, partsOf(row));
  }
  const parts = rows.get(site);
  tellRange(site, parts);
  return parts.row;
}

/** Follows a link to a site: opens it, and what it is in, even if a filter hides it. */
function openTarget() {
  const site = sites.find((one) => location.hash === `#site-${one.rank}`);
  if (!site) return;
  if (others.includes(site)) {
    more.open = true;
    updateOthers(others.filter(isShown), site);
  }
  const { row } = rows.get(site);
  row.hidden = false;
  row.open = true;
  row.scrollIntoView({ block: "nearest" });
  row.querySelector("summary").focus({ preventScroll: true });
}

function listenToRows() {
  addEventListener("hashchange", openTarget);
  more?.addEventListener("toggle", () => { if (more.open && texts === null) updateRows(); });
}
