// Numbers as the text of the page has them, and names made harmless for a reader.

const byId = (id) => document.getElementById(id);

/** Bytes with a binary unit: `1.50 MiB`. */
function bytes(value) {
  if (Math.abs(value) < 1024) return `${value.toFixed(0)} B`;
  const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
  let [scaled, unit] = [value / 1024, 0];
  while (Math.abs(scaled) >= 1023.95 && unit < units.length - 1) {
    scaled /= 1024;
    unit += 1;
  }
  return `${scaled.toFixed(Math.abs(scaled) < 10 ? 2 : 1)} ${units[unit]}`;
}

/** Bytes with their sign, where the sign is the point. */
const signedBytes = (value) => (value >= 0.5 ? "+" : "") + bytes(value);

/** A whole number with its thousands set apart, and what it counts. */
const thousands = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
const count = (value, what) => `${thousands(value)} ${what}${value === 1 ? "" : "s"}`;

const percent = (share) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** A moment of the window, fine enough to tell two apart. */
function moment(s) {
  if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0).replace(/\.0$/, "")} s`;
  const whole = Math.round(s);
  const [hours, minutes, seconds] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const parts = [hours && `${hours} h`, minutes && `${minutes} min`, !hours && seconds && `${seconds} s`];
  return parts.filter(Boolean).join(" ");
}

/** A name from the target: control characters and those that turn text around as escapes, cut. */
function safe(name, longest = 240) {
  const cut = name.length > longest ? `${name.slice(0, longest)}… (${name.length} characters)` : name;
  return cut.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

const lastPart = (path) => path.slice(path.lastIndexOf("/") + 1);

/** A frame's function, or its address where there is no name. */
const functionOf = (frame) =>
  frame.function === null ? `0x${frame.address.toString(16)}` : safe(frame.function);

/** Where a frame stands: its line, or the place in its module. */
function placeOf(frame) {
  if (frame.file !== null) {
    return safe(lastPart(frame.file)) + (frame.line === null ? "" : `:${frame.line}`);
  }
  if (frame.module === null || frame.offset === null) return "";
  return `${safe(lastPart(frame.module))}+0x${frame.offset.toString(16)}`;
}

/** An element with a class, text and children. Text never becomes markup. */
function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

/** The same for SVG, with attributes. */
function shape(tag, attributes, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

/** Terms and values, those without a value left out. */
function definitions(className, pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", className,
    ...known.map(([term, value]) => element("div", "", element("dt", "", term), element("dd", "", value))));
}
