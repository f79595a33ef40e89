//! The report as text for a terminal.

mod diff;
mod glyphs;
mod site;

use std::fmt::Write as _;
use std::io::{self, Write};

use jiff::Timestamp;

use super::schema::{MallocReport, Report, SamplerSwitchReport};
use super::{goroutines, human, memory, overhead};
use crate::loss;

/// How to write it.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions {
    /// Sites shown.
    pub top: usize,
    /// ANSI colours.
    pub colour: bool,
    /// Columns; prose is wrapped to them, names are not.
    pub width: usize,
    /// Cut names in the middle where a line would be wider.
    pub shorten: bool,
    /// Signs beyond ASCII.
    pub unicode: bool,
    /// Every frame, not only the program's own.
    pub all_frames: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            top: 20,
            colour: false,
            width: 100,
            shorten: false,
            unicode: true,
            all_frames: false,
        }
    }
}

pub use diff::write_diff;
pub(crate) use site::{name_of, place_of};

const BOLD: &str = "1";
const DIM: &str = "2";
/// Names are not cut to fewer columns, however narrow the terminal is.
const MIN_NAME: usize = 16;
/// A space at which a line is not broken.
const KEEP: &str = "\u{a0}";

/// Writes the report.
pub fn write<W: Write>(report: &Report, options: TextOptions, mut out: W) -> io::Result<()> {
    let mut page = Page {
        text: String::new(),
        options,
    };
    page.head(report);
    for site in report.sites.iter().take(options.top) {
        page.site(site);
    }
    page.goroutines(report);
    page.foot(report);
    if !options.unicode {
        page.text = glyphs::in_ascii(&page.text);
    }
    out.write_all(page.text.as_bytes())
}

struct Page {
    text: String,
    options: TextOptions,
}

impl Page {
    fn head(&mut self, report: &Report) {
        let target = &report.target;
        let title = format!(
            "{} (pid {}), {}, {}",
            escape(&target.comm),
            target.pid,
            escape(&target.runtime),
            escape(&target.exe)
        );
        let title = self.fit(&title, self.options.width);
        let title = self.paint(BOLD, &title);
        self.line(&title);
        if let Some(go) = &target.go {
            let sampler = if let Some(switch) = &go.sampler_switch {
                sampler_switch(switch)
            } else if go.heap_profiling {
                format!(
                    "its heap sampler takes one object in {}",
                    human::bytes(go.sample_rate as f64)
                )
            } else if go.sampling == "leaktrace" {
                "its heap sampler is off, leaktrace takes samples itself".to_owned()
            } else {
                "its heap sampler is off".to_owned()
            };
            let stripped = if go.stripped { ", stripped" } else { "" };
            let pie = if go.pie { ", position independent" } else { "" };
            self.prose("", &format!("Go program{stripped}{pie}; {sampler}"));
        }
        match (&target.container_id, &target.cgroup) {
            (Some(id), _) => self.line(&format!("container {}", escape(id))),
            (None, Some(path)) if path != "/" => {
                let path = self.fit(&format!("cgroup {}", escape(path)), self.options.width);
                self.line(&path);
            }
            _ => {}
        }
        if let Some(pid) = target.ns_pids.last() {
            self.line(&format!("pid {pid} in its own pid namespace"));
        }
        if let Some(malloc) = report.malloc.as_ref().and_then(in_windows) {
            self.prose("", &malloc);
        }
        let window = &report.window;
        let start = i128::from(window.start_unix_ns);
        let start = Timestamp::from_nanosecond(start)
            .map(|t| format!("{t:.0}"))
            .unwrap_or_default();
        let collections = window
            .gc_cycles
            .map(|cycles| format!(", {}", human::count(cycles.into(), "collection")))
            .unwrap_or_default();
        let seconds = human::seconds(window.duration_s);
        self.prose(
            "",
            &format!(
                "{seconds} from {start}{collections}; end: {} ({})",
                window.end,
                escape(&window.end_text)
            ),
        );
        if let Some(overhead) = &report.overhead {
            self.prose("", &overhead::in_words(overhead));
        }
        let summary = report.summary;
        let counts = [
            (summary.leak, "leak", "leaks"),
            (summary.growing, "grows", "grow"),
            (summary.unknown, "unknown", "unknown"),
            (summary.steady, "steady", "steady"),
        ];
        let leak_word = if summary.leak == 1 {
            "1 site leaks".to_owned()
        } else {
            format!("{} sites leak", summary.leak)
        };
        let rest: Vec<_> = counts[1..]
            .iter()
            .map(|&(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
            .collect();
        let (bytes, rate) = report.leaking();
        let leaking = if bytes > 0.0 {
            format!(
                "; what leaks holds {} and grows by {}/s",
                human::bytes(bytes),
                human::bytes(rate)
            )
        } else {
            String::new()
        };
        self.prose("", &format!("{leak_word}, {}{leaking}", rest.join(", ")));
        self.line("");
    }

    fn foot(&mut self, report: &Report) {
        let hidden = report.sites.len().saturating_sub(self.options.top);
        if hidden > 0 {
            self.line(&format!(
                "and {} not shown",
                human::count(hidden as u64, "site")
            ));
            self.line("");
        }
        for line in memory::lines(&report.memory) {
            self.line(&line);
        }
        if report.losses.is_empty() {
            self.line("losses: none");
        } else {
            self.line("losses:");
        }
        for (cause, &count) in &report.losses {
            let meaning = loss::meaning(cause).unwrap_or("a cause this leaktrace does not know");
            self.prose(
                "  ",
                &format!("{} {}: {meaning}", human::thousands(count), escape(cause)),
            );
        }
        let retention = report
            .retention
            .iter()
            .flat_map(|retention| &retention.limits);
        let mut limits = report.limits.iter().chain(retention).peekable();
        if limits.peek().is_some() {
            self.line("not seen:");
        }
        for limit in limits {
            self.prose(
                "  ",
                &format!("{}: {}", escape(&limit.what), escape(&limit.reason)),
            );
        }
        for note in &report.notes {
            self.prose("note: ", &escape(note));
        }
    }

    fn goroutines(&mut self, report: &Report) {
        let Some(goroutines) = &report.goroutines else {
            return;
        };
        for (prefix, text) in goroutines::part(goroutines, self.options.top) {
            self.prose(prefix, &text);
        }
        self.line("");
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Wraps words to the width, further lines under the first one's text.
    fn prose(&mut self, prefix: &str, text: &str) {
        let indent = prefix.chars().count();
        let width = self.options.width.max(indent + 20);
        let mut column = indent;
        self.text.push_str(prefix);
        for (index, word) in text.split(' ').enumerate() {
            let len = columns(word);
            if index > 0 && column + 1 + len > width {
                let _ = write!(self.text, "\n{:indent$}", "");
                column = indent;
            } else if index > 0 {
                self.text.push(' ');
                column += 1;
            }
            self.text.push_str(&word.replace(KEEP, " "));
            column += len;
        }
        self.text.push('\n');
    }

    /// A name in the width it is given, if it is to be cut to one.
    fn fit(&self, name: &str, width: usize) -> String {
        match self.options.shorten {
            true => glyphs::shorten(name, width.max(MIN_NAME)),
            false => name.to_owned(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.options.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// How native allocators were traced, if that was in windows.
fn in_windows(malloc: &MallocReport) -> Option<String> {
    let [windows, discarded] = malloc.windows?;
    let rate = malloc.allocs_per_s.unwrap_or_default();
    let mut text = format!(
        "{} a second at the attach: native allocators were traced in {}, {} of the time, so that this costs at \
         most {} %; the figures of their sites are estimates",
        human::count(rate as u64, "allocation"),
        human::count(windows, "window"),
        human::percent(malloc.open_share.unwrap_or_default()),
        malloc.max_overhead_percent.unwrap_or_default(),
    );
    if discarded > 0 {
        text += &format!(
            "; {} more lost something and do not count",
            human::thousands(discarded)
        );
    }
    Some(text)
}

/// What `--go-enable-heap-profile` has done.
fn sampler_switch(switch: &SamplerSwitchReport) -> String {
    let rate = human::bytes(switch.rate_written as f64);
    let before = switch.rate_before;
    let beginning = match switch.left_on {
        false => "leaktrace switched its heap sampler on at the attach",
        true => "a leaktrace that was killed had left its heap sampler on",
    };
    let end = match switch.end.as_str() {
        "put-back" => format!("MemProfileRate is {before} again"),
        "target-gone" => "the process is gone".to_owned(),
        "changed" => "the process has changed MemProfileRate itself since".to_owned(),
        "failed" => "it could not be switched off again, see the limits".to_owned(),
        _ => "it is not known to be off again".to_owned(),
    };
    format!("{beginning}, one object in {rate}; {end}")
}

/// Columns that a word takes: colours take none.
fn columns(word: &str) -> usize {
    let mut parts = word.split('\x1b');
    let plain = parts.next().unwrap_or_default().chars().count();
    let coloured = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    plain + coloured.map(|text| text.chars().count()).sum::<usize>()
}

/// Makes a name harmless for a terminal: control characters, and those that change the direction
/// of text, are written as escapes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Whether a terminal does something on this character other than to show it.
pub(crate) fn is_obeyed(c: char) -> bool {
    let bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let ends_a_line = matches!(c, '\u{2028}' | '\u{2029}');
    c.is_control() || bidi || ends_a_line
}
