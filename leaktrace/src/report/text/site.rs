//! A site: its verdict, figures, curve, stack and evidence.

use super::{BOLD, DIM, KEEP, Page, escape, glyphs};
use crate::report::fold::{Folded, fold};
use crate::report::human;
use crate::report::schema::{Frame, SiteReport};
use crate::report::why::{KEPT_BY, kept_by};
use crate::verdict::Verdict;

/// Columns of a curve.
const CURVE: usize = 32;
/// Frames shown of the program's own.
const OWN_FRAMES: usize = 8;
/// Widest column of names beside which places stand.
const NAME_COLUMN: usize = 48;

impl Page {
    /// A block of lines on one site.
    pub(super) fn site(&mut self, site: &SiteReport) {
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
        self.prose(
            &format!("#{} ", site.rank),
            &format!("{verdict} {} {live} live{interval}, {objects}", site.kind),
        );

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
        self.curve(site);
        self.stack(site);
        for reason in &site.evidence {
            self.prose("   - ", &escape(reason));
        }
        if let Some(found) = &site.retention {
            self.line(&format!("   {KEPT_BY}"));
            for line in kept_by(found) {
                let text = line.trim_start();
                self.prose(&line[..line.len() - text.len()], text);
            }
        }
        self.line("");
    }

    /// The live bytes over time.
    fn curve(&mut self, site: &SiteReport) {
        let curve = glyphs::sparkline(&site.series, CURVE);
        let ends = site.series.first().zip(site.series.last());
        let Some((first, last)) = ends.filter(|_| !curve.is_empty()) else {
            return;
        };
        let live = |point: &(f64, u64)| human::bytes(point.1 as f64);
        self.line(&format!(
            "   {curve}  {} → {} in {}",
            live(first),
            live(last),
            human::seconds(last.0 - first.0)
        ));
    }

    fn stack(&mut self, site: &SiteReport) {
        self.folded_stack(&site.allocator_frames, &site.stack);
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
            self.prose(
                "     … ",
                &format!("outer frames are missing: {}", escape(reason)),
            );
        }
    }

    /// The program's own frames, and the others in a line each below and above.
    pub(super) fn folded_stack(&mut self, allocator: &[String], stack: &[Frame]) {
        let whole = Folded {
            inner: &[],
            own: stack,
            outer: &[],
        };
        let (folded, shown) = match self.options.all_frames {
            true => (whole, stack.len()),
            false => (fold(stack), OWN_FRAMES),
        };
        let inner = allocator.iter().map(|name| escape(name));
        let inner: Vec<_> = inner.chain(folded.inner.iter().map(name_of)).collect();
        self.folded(&inner);
        let shown = shown.min(folded.own.len());
        self.frames(&folded.own[..shown]);
        let outer = folded.own[shown..].iter().chain(folded.outer);
        self.folded(&outer.map(name_of).collect::<Vec<_>>());
    }

    /// One line for frames that are not the program's own, or too many.
    fn folded(&mut self, names: &[String]) {
        let line = match names {
            [] => return,
            _ if self.options.all_frames => names.join(" < "),
            [first, .., last] if names.len() > 2 => {
                format!("{} frames: {first} < … < {last}", names.len())
            }
            _ => names.join(" < "),
        };
        let line = self.fit(&format!("     ({line})"), self.options.width);
        let line = self.paint(DIM, &line);
        self.line(&line);
    }

    fn frames(&mut self, frames: &[Frame]) {
        let room = self.options.width.saturating_sub(5);
        let names: Vec<_> = frames
            .iter()
            .map(|frame| self.fit(&name_of(frame), room / 2))
            .collect();
        let column = names
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or_default()
            .min(NAME_COLUMN);
        for (frame, name) in frames.iter().zip(&names) {
            let inlined = if frame.inlined { " (inlined)" } else { "" };
            let used = name.chars().count().max(column) + 2 + inlined.len();
            let place = self.fit(&place_of(frame), room.saturating_sub(used));
            let line = format!("     {name:column$}  {place}{inlined}");
            self.line(line.trim_end());
        }
    }
}

pub(crate) fn name_of(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => escape(function),
        None => format!("{:#x}", frame.address),
    }
}

pub(crate) fn place_of(frame: &Frame) -> String {
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
