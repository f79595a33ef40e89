// The controls, and what they change: everything is drawn anew from what is chosen.

function update() {
  drawTimeline();
  growAndDraw();
  updateRange();
  updateRows();
  for (const [choice, isOn] of choices) choice.setAttribute("aria-pressed", isOn());
}

/** Buttons that are pressed or not, with the question whether they are. */
const choices = new Map();
function choice(folder, label, className, isOn, press) {
  const button = element("button", className, label);
  button.type = "button";
  button.addEventListener("click", () => { press(); update(); });
  choices.set(button, isOn);
  byId(folder).append(button);
}

const toggle = (set, value) => (set.has(value) ? set.delete(value) : set.add(value));

function buildControls() {
  for (const verdict of VERDICTS) {
    choice("verdicts", `${verdict} ${data.summary[verdict]}`, `verdict ${verdict}`,
      () => chosen.verdicts.has(verdict), () => toggle(chosen.verdicts, verdict));
  }
  for (const kind of kinds) {
    choice("kinds", kind, "", () => chosen.kinds.has(kind), () => toggle(chosen.kinds, kind));
  }
  for (const [measure, label] of Object.entries(MEASURES)) {
    choice("measures", label, "", () => chosen.measure === measure, () => { chosen.measure = measure; });
  }
  choice("directions", "from the root", "", () => !chosen.inverted, () => { chosen.inverted = false; });
  choice("directions", "inverted: from the allocation", "", () => chosen.inverted, () => { chosen.inverted = true; });

  const age = byId("age");
  const oldest = sites.reduce((most, site) => Math.max(most, site.oldest_s), 0);
  for (const seconds of [0, 5, 10, 30, 60, 300, 900, 3600, 14400].filter((s) => s <= oldest)) {
    age.append(new Option(seconds === 0 ? "any age" : `at least ${moment(seconds)}`, seconds));
  }
  age.addEventListener("change", () => { chosen.oldest = Number(age.value); update(); });
  byId("search").addEventListener("input", (event) => {
    chosen.query = event.target.value.trim().toLowerCase();
    drawFlame();
    updateRows();
  });
  byId("reset").addEventListener("click", () => {
    chosen = initial();
    byId("search").value = "";
    age.value = 0;
    zoomed = null;
    update();
  });
}

function choose(from, to) {
  chosen.range = [Math.max(whole[0], Math.min(from, to)), Math.min(whole[1], Math.max(from, to))];
  if (chosen.range[0] === chosen.range[1]) chosen.range = [...whole];
  chosen.zoomed = chosen.zoomed && !isWhole();
  update();
}

function buildRange() {
  const [from, to] = [byId("from"), byId("to")];
  for (const slider of [from, to]) {
    [slider.min, slider.max] = whole;
    slider.step = (whole[1] - whole[0]) / 200;
    slider.addEventListener("input", () => drawBrush([Number(from.value), Number(to.value)].sort((a, b) => a - b)));
    slider.addEventListener("change", () => choose(Number(from.value), Number(to.value)));
  }
  choices.set(byId("zoom"), () => chosen.zoomed);
  byId("zoom").addEventListener("click", () => { chosen.zoomed = !chosen.zoomed; update(); });
  byId("whole").addEventListener("click", () => choose(...whole));
}

function updateRange() {
  const [from, to] = chosen.range;
  byId("from").value = from;
  byId("to").value = to;
  byId("range-text").textContent = isWhole() ? "the whole window" : `${moment(from)} to ${moment(to)}`;
  byId("zoom").disabled = isWhole();
  byId("whole").disabled = isWhole();
}

/** As the system has it, until the reader says otherwise. */
function buildTheme() {
  const button = byId("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const style = document.documentElement.style;
  const isDark = () => (style.colorScheme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { style.colorScheme = isDark() ? "light" : "dark"; label(); });
  prefersDark.addEventListener("change", label);
  button.hidden = false;
  label();
}

buildTheme();
byId("charts").hidden = false;
buildControls();
buildRange();
listenToTimeline(choose);
listenToFlame(showDetail);
new ResizeObserver(() => { if (plot.clientWidth !== view.drawnWidth) drawTimeline(); }).observe(plot);
listenToRows();
update();
openTarget();
