//! The report as text for a terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

use jiff::Timestamp;

use super::schema::{Frame, Report, SamplerSwitchReport, SiteReport};
use super::{goroutines, human, memory};
use crate::loss;
use crate::verdict::Verdict;

/// How to write it.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions {
    /// Sites shown.
    pub top: usize,
    /// ANSI colours.
    pub colour: bool,
    /// Columns of the terminal; prose is wrapped, names never are.
    pub width: usize,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            top: 20,
            colour: false,
            width: 100,
        }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
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
        let leaking = || {
            report
                .sites
                .iter()
                .filter(|site| site.verdict == Verdict::Leak)
        };
        let (bytes, rate) = leaking().fold((0.0, 0.0), |(bytes, rate), site| {
            (
                bytes + site.live_bytes as f64,
                rate + site.growth_bytes_per_s,
            )
        });
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

    fn site(&mut self, site: &SiteReport) {
        let colour = match site.verdict {
            Verdict::Leak => "1;31",
            Verdict::Growing => "33",
            Verdict::Unknown => "36",
            Verdict::Steady => "32",
        };
        let verdict = self.paint(colour, &site.verdict.to_string().to_uppercase());
        let interval = if site.estimate.sampled {
            format!(
                " ({} to {}, {})",
                human::bytes(site.estimate.low_bytes as f64),
                human::bytes(site.estimate.high_bytes as f64),
                human::count(site.estimate.samples, "sample")
            )
        } else {
            String::new()
        };
        let live = self.paint(BOLD, &human::bytes(site.live_bytes as f64));
        let objects = human::count(site.live_objects, "object");
        self.line(&format!(
            "#{} {verdict} {} {live} live{interval}, {objects}",
            site.rank, site.kind
        ));

        let per_s = site.growth_bytes_per_s;
        let mut figures = vec![
            format!(
                "growth {}/s, {}/h",
                human::bytes(per_s),
                human::bytes(per_s * 3600.0)
            ),
            format!(
                "{} since the attach",
                human::bytes(site.growth_bytes as f64)
            ),
            format!(
                "allocated {}, freed {}",
                human::bytes(site.alloc_bytes as f64),
                human::bytes(site.freed_bytes as f64)
            ),
        ];
        if site.attach_bytes > 0 {
            figures.push(format!(
                "preexisting {} of {}",
                human::bytes(site.preexisting_bytes as f64),
                human::bytes(site.attach_bytes as f64)
            ));
        }
        if site.live_bytes > 0 {
            figures.push(format!("oldest {}", human::seconds(site.oldest_s)));
        }
        if let Some(survived) = site.gc_cycles_survived.filter(|_| site.live_bytes > 0) {
            figures.push(format!(
                "survived {}",
                human::count(survived.into(), "collection")
            ));
        }
        if let Some(proven) = site.proven_bytes {
            figures.push(format!("proven {}", human::bytes(proven as f64)));
        }
        let figures: Vec<_> = figures
            .iter()
            .map(|figure| figure.replace(' ', KEEP))
            .collect();
        self.prose("   ", &figures.join(" · "));
        self.stack(site);
        for reason in &site.evidence {
            self.prose("   - ", &escape(reason));
        }
        self.line("");
    }

    fn stack(&mut self, site: &SiteReport) {
        let names: Vec<_> = site.stack.iter().map(name_of).collect();
        let column = names
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or_default()
            .min(48);
        if !site.allocator_frames.is_empty() {
            let folded = format!("     ({})", escape(&site.allocator_frames.join(" < ")));
            let folded = self.paint(DIM, &folded);
            self.line(&folded);
        }
        for (frame, name) in site.stack.iter().zip(&names) {
            let inlined = if frame.inlined { " (inlined)" } else { "" };
            let place = place_of(frame);
            let line = format!("     {name:column$}  {place}{inlined}");
            self.line(line.trim_end());
        }
        if site.stack.is_empty() {
            let none = if site.preexisting_bytes > 0 {
                "     no stack: memory from before the attach"
            } else {
                "     no stack was kept"
            };
            self.line(none);
        }
        if site.stack_truncated {
            self.line("     … deeper frames were cut");
        }
        if let Some(reason) = &site.stack_incomplete {
            self.line(&format!(
                "     … outer frames are missing: {}",
                escape(reason)
            ));
        }
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
        if !report.limits.is_empty() {
            self.line("not seen:");
        }
        for limit in &report.limits {
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
            let len = word.chars().count();
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

    fn paint(&self, code: &str, text: &str) -> String {
        if self.options.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
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

fn name_of(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => escape(function),
        None => format!("{:#x}", frame.address),
    }
}

fn place_of(frame: &Frame) -> String {
    let line = frame
        .line
        .map(|line| format!(":{line}"))
        .unwrap_or_default();
    let module = || {
        let module = frame.module.as_ref()?;
        let offset = frame
            .offset
            .map(|offset| format!("+{offset:#x}"))
            .unwrap_or_default();
        Some(format!("{}{offset}", escape(module)))
    };
    let place = match &frame.file {
        Some(file) => format!("{}{line}", escape(file)),
        None => module().unwrap_or_default(),
    };
    match &frame.reason {
        Some(reason) => format!("{place} ({})", escape(reason))
            .trim_start()
            .to_owned(),
        None => place,
    }
}

/// Makes a name harmless for a terminal: control characters, and those that change the direction
/// of text, are written as escapes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let bidi = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || bidi {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}
