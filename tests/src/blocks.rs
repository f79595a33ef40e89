//! What a capture has counted of native allocators' blocks, and what a program says of them itself.

use std::{collections::BTreeMap, fs::File, io::BufReader, path::Path};

use leaktrace::capture::{
    Capture,
    schema::{Kind, Symbols},
};
use serde_json::Value;

/// Blocks allocated and their bytes, blocks freed and their bytes.
pub type Counts = [u64; 4];

/// The counts of every function that has called an allocator and `is_counted`, by its name: of each stack
/// the innermost one that is.
///
/// # Panics
///
/// The file is not a whole capture.
pub fn blocks_of(file: &Path, is_counted: impl Fn(&str) -> bool) -> BTreeMap<String, Counts> {
    let file = File::open(file).expect("the capture is there");
    let capture = Capture::read(BufReader::new(file)).expect("the capture is well formed");
    let symbols = capture.symbols.as_ref().expect("the capture was closed");
    let mut names = BTreeMap::new();
    let mut counts = BTreeMap::<String, Counts>::new();
    for interval in &capture.intervals {
        for site in interval.sites.iter().filter(|s| s.kind() == Kind::Malloc) {
            // The first is the allocator's function itself.
            let mut callers = site.pcs.iter().skip(1).map(|pc| function(symbols, *pc));
            if let Some(caller) = callers.find(|name| is_counted(name)) {
                names.insert(site.id, caller);
            }
        }
        for delta in &interval.deltas {
            if let Some(name) = names.get(&delta.site) {
                let sum = counts.entry(name.clone()).or_default();
                sum[0] += delta.allocs;
                sum[1] += delta.alloc_bytes;
                sum[2] += delta.frees;
                sum[3] += delta.free_bytes;
            }
        }
    }
    counts
}

/// The function that contains a return address, those inlined into it left aside.
fn function(symbols: &Symbols, address: u64) -> String {
    let found = symbols
        .addresses
        .iter()
        .find(|a| a.address == address && !a.exact);
    let frame = found.and_then(|address| symbols.frames.get(*address.frames.last()? as usize));
    let name = frame.and_then(|frame| symbols.strings.get(frame.function as usize));
    name.cloned().unwrap_or_else(|| format!("{address:#x}"))
}

/// The counts that a program has printed, of those functions that have any.
pub fn told(truth: &Value) -> BTreeMap<String, Counts> {
    let fields = truth.as_object().into_iter().flatten();
    let counts = fields.filter_map(|(name, counts)| {
        let counts = counts.as_array()?.iter().map(Value::as_u64);
        let counts: Vec<u64> = counts.collect::<Option<_>>()?;
        Some((name.clone(), counts.try_into().ok()?))
    });
    counts
        .filter(|(_, counts): &(_, Counts)| counts[0] > 0)
        .collect()
}
