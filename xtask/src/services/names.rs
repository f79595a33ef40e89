//! How many frames of a report have a name, and how many could have one.

use std::{collections::HashMap, fs, path::PathBuf};

use anyhow::{Result, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SymbolKind};
use serde_json::Value;

/// Counts of frames.
#[derive(Default)]
pub(super) struct Names {
    pub(super) frames: usize,
    pub(super) named: usize,
    /// In code that has symbols: the file or its debug information has a table of them all, or what the file
    /// exports is there. Any other is a function of a stripped file that is not exported.
    pub(super) with_symbols: usize,
    /// One of these that has no name all the same.
    nameless: Option<String>,
}

impl Names {
    pub(super) fn of(report: &Value, debug_dirs: &[PathBuf]) -> Self {
        let mut modules = HashMap::new();
        let mut names = Self::default();
        let sites = report["sites"].as_array().into_iter().flatten();
        for frame in sites.flat_map(|site| site["stack"].as_array().into_iter().flatten()) {
            names.frames += 1;
            if frame["function"].is_string() {
                names.named += 1;
                names.with_symbols += 1;
                continue;
            }
            let path = frame["module"].as_str().unwrap_or_default();
            let build_id = frame["build_id"].as_str().unwrap_or_default();
            let module = modules
                .entry(path.to_owned())
                .or_insert_with(|| Symbols::of(path, build_id, debug_dirs));
            if module.cover(frame["offset"].as_u64().unwrap_or_default()) {
                names.with_symbols += 1;
                names.nameless = Some(frame.to_string());
            }
        }
        names
    }

    /// Of all frames, and of those in code that has symbols, so many in a hundred have a name.
    pub(super) fn are_at_least(&self, of_all: f64, of_those_with_symbols: f64) -> Result<()> {
        ensure!(self.frames > 0, "the report has no frame");
        ensure!(
            self.share() >= of_all && self.share_with_symbols() >= of_those_with_symbols,
            "{} of {} frames are named, and of {} that have symbols; one that is not: {}",
            self.named,
            self.frames,
            self.with_symbols,
            self.nameless
                .as_deref()
                .unwrap_or("in code without symbols")
        );
        Ok(())
    }

    /// Of a hundred frames.
    pub(super) fn share(&self) -> f64 {
        100.0 * self.named as f64 / self.frames.max(1) as f64
    }

    /// Of a hundred frames in code that has symbols.
    pub(super) fn share_with_symbols(&self) -> f64 {
        100.0 * self.named as f64 / self.with_symbols.max(1) as f64
    }
}

/// What a file says of its functions.
enum Symbols {
    None,
    /// There is a table of all of them, or debug information.
    All,
    /// Ranges of file offsets.
    Exported(Vec<std::ops::Range<u64>>),
}

impl Symbols {
    fn of(path: &str, build_id: &str, debug_dirs: &[PathBuf]) -> Self {
        let is_full = |bytes: &[u8]| {
            object::File::parse(bytes).is_ok_and(|file| {
                let has = |section| file.section_by_name(section).is_some();
                has(".symtab") || has(".debug_info")
            })
        };
        let debug = build_id.split_at_checked(2).map(|(first, rest)| {
            let name = format!(".build-id/{first}/{rest}.debug");
            debug_dirs.iter().any(|folder| folder.join(&name).is_file())
        });
        let Ok(bytes) = fs::read(path) else {
            return Self::None;
        };
        if debug == Some(true) || is_full(&bytes) {
            return Self::All;
        }
        match object::File::parse(&*bytes) {
            Ok(file) => Self::Exported(exported(&file)),
            Err(_) => Self::None,
        }
    }

    /// Whether a return address with that offset in the file is in a function with a name.
    fn cover(&self, offset: u64) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Exported(ranges) => {
                let call = offset.saturating_sub(1);
                ranges.iter().any(|range| range.contains(&call))
            }
        }
    }
}

/// Where in the file its exported functions are.
fn exported(file: &object::File) -> Vec<std::ops::Range<u64>> {
    let functions = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text);
    let in_file = functions.filter_map(|symbol| {
        let mut segments = file.segments();
        let segment = segments.find(|segment| {
            (segment.address()..segment.address() + segment.size()).contains(&symbol.address())
        })?;
        let begin = segment.file_range().0 + (symbol.address() - segment.address());
        Some(begin..begin + symbol.size())
    });
    in_file.collect()
}
