//! The profile that `go tool pprof` reads: `profile.proto`, gzipped.
//!
//! Sample types stand in the order of Go's own heap profile, and more behind them: `proven_*` is what
//! that profile has as `inuse_*` (what survived the last completed collection), `growth_space` is the
//! end less the attach. A stack of the Go heap begins where Go's profile lets it begin
//! (runtime/pprof/protomem.go, `writeHeapProto`): frames of the runtime at the innermost end are left
//! out unless there is nothing else, so that both list the same functions.

use std::{
    array,
    borrow::Cow,
    collections::HashMap,
    io::{self, Write},
};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use super::{Value, escape, left_out, sites};
use crate::{
    capture::{Capture, schema::Site},
    live_heap::{self, SiteHistory},
    loss,
    report::{Detailed, Frame, Kind, Report, SiteReport, human},
};
use format::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

/// The messages of `profile.proto`.
#[expect(unreachable_pub, reason = "generated code")]
mod format {
    include!(concat!(env!("OUT_DIR"), "/leaktrace.pprof.rs"));
}

/// Name and unit of each sample type.
const SAMPLE_TYPES: [(&str, &str); TYPES] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
    ("proven_objects", "count"),
    ("proven_space", "bytes"),
    ("growth_space", "bytes"),
];
const TYPES: usize = 7;

/// The figures of a history, one for each sample type.
fn figures(history: &SiteHistory) -> [f64; TYPES] {
    [
        history.alloc_objects,
        history.alloc_bytes,
        history.live_objects,
        history.live.value,
        history.proven_objects.unwrap_or_default(),
        history.proven_bytes.unwrap_or_default(),
        history.growth.value,
    ]
}

/// Writes the profile of a capture. A reader shows `value` unless told otherwise.
///
/// # Errors
///
/// The writer's.
pub fn write<W: Write>(
    detailed: &Detailed,
    capture: &Capture,
    value: Value,
    out: W,
) -> io::Result<()> {
    let mut out = GzEncoder::new(out, Compression::default());
    out.write_all(&profile(detailed, capture, value).encode_to_vec())?;
    out.finish()?.flush()
}

fn profile(detailed: &Detailed, capture: &Capture, value: Value) -> Profile {
    let report = &detailed.report;
    let mut builder = Builder::new(capture, &report.target.exe);
    let recorded = detailed.heap.parts.iter();
    let recorded: HashMap<_, _> = recorded.map(|part| (part.site, part)).collect();
    for (index, site) in sites(report) {
        let mut sum = [0.0; TYPES];
        for part in parts(detailed, &recorded, site, &detailed.histories[index]) {
            // Rounded so that the parts add up to the site, to the byte.
            let before = sum.map(f64::round);
            let figures = figures(&part.history);
            sum = array::from_fn(|at| sum[at] + figures[at]);
            let value: Vec<_> = (0..TYPES)
                .map(|at| (sum[at].round() - before[at]) as i64)
                .collect();
            if value.iter().any(|&value| value != 0) {
                let sample = Sample {
                    location_id: builder.locations(&part.frames, part.first_pc),
                    value,
                    label: builder.labels(site, part.history.object_size),
                };
                builder.profile.sample.push(sample);
            }
        }
    }
    for comment in comments(report) {
        let comment = builder.string(&escape(&comment));
        builder.profile.comment.push(comment);
    }
    for (name, unit) in SAMPLE_TYPES {
        let value_type = builder.value_type(name, unit);
        builder.profile.sample_type.push(value_type);
    }
    let default = match value {
        Value::Growth => "growth_space".to_owned(),
        value => value.to_string(),
    };
    builder.profile.default_sample_type = builder.string(&default);
    builder.profile.period_type = Some(builder.value_type("space", "bytes"));
    let rates = report.sites.iter().map(|site| site.estimate.rate_bytes);
    builder.profile.period = signed(rates.max().unwrap_or(1));
    builder.profile.time_nanos = signed(report.window.start_unix_ns);
    builder.profile.duration_nanos = (report.window.duration_s * 1e9) as i64;
    builder.profile
}

/// What one sample of a profile is made from.
struct Part<'a> {
    history: Cow<'a, SiteHistory>,
    /// Innermost first.
    frames: Vec<Frame>,
    /// The instruction at which the stack begins, where it does not begin with a call.
    first_pc: Option<u64>,
}

/// A site of the Go heap in as many parts as the runtime has buckets for it: each has one size of
/// objects, and frames of the runtime of its own. Any other site is one part.
fn parts<'a>(
    detailed: &'a Detailed,
    recorded: &HashMap<u32, &live_heap::Part>,
    site: &SiteReport,
    history: &'a SiteHistory,
) -> Vec<Part<'a>> {
    let first_pc = |site: &Site| site.pcs.first().copied().filter(|_| !site.logical);
    if site.kind != Kind::GoHeap {
        let first = history.sites.first().and_then(|&id| detailed.site(id));
        return vec![Part {
            history: Cow::Borrowed(history),
            frames: site.stack.clone(),
            first_pc: first.and_then(first_pc),
        }];
    }
    let parts = history.sites.iter().filter_map(|id| recorded.get(id));
    parts
        .map(|part| {
            let origin = detailed.site(part.site);
            let frames = origin.map(|site| detailed.whole_stack(site));
            Part {
                history: Cow::Owned(detailed.heap.history_of(part)),
                frames: as_go_does(frames.unwrap_or_default()),
                first_pc: origin.and_then(first_pc),
            }
        })
        .collect()
}

/// The frames that Go's own profile shows of a stack: not the one that every goroutine begins with.
fn as_go_does(mut frames: Vec<Frame>) -> Vec<Frame> {
    let is_runtime = |frame: &Frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        name.starts_with("runtime.") || name.starts_with("internal/runtime/")
    };
    frames.retain(|frame| frame.function.as_deref() != Some("runtime.goexit"));
    let hidden = frames.iter().take_while(|frame| is_runtime(frame)).count();
    if hidden < frames.len() {
        frames.drain(..hidden);
    }
    frames
}

/// What the figures mean, what was lost, what could not be seen, and how the capture ended.
fn comments(report: &Report) -> Vec<String> {
    let (target, window) = (&report.target, &report.window);
    let mut comments = vec![
        format!(
            "leaktrace {}: {} (pid {}), {}, {}",
            env!("CARGO_PKG_VERSION"),
            target.comm,
            target.pid,
            target.runtime,
            target.exe
        ),
        format!(
            "recorded for {}; end: {} ({})",
            human::seconds(window.duration_s),
            window.end,
            window.end_text
        ),
        "inuse: not known to be dead at the end. proven: of that, what has survived a collection, which is \
         inuse in the program's own heap profile. alloc: since the attach, not since the program began. \
         growth: the end less the attach"
            .to_owned(),
    ];
    if report.losses.is_empty() {
        comments.push("losses: none".to_owned());
    }
    for (cause, count) in &report.losses {
        let meaning = loss::meaning(cause).unwrap_or("a cause this leaktrace does not know");
        comments.push(format!("lost: {count} {cause}: {meaning}"));
    }
    if let Some(text) = left_out(report) {
        comments.push(format!("left out: {text}"));
    }
    for limit in &report.limits {
        comments.push(format!("not seen: {}: {}", limit.what, limit.reason));
    }
    comments.extend(report.notes.iter().map(|note| format!("note: {note}")));
    comments
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Gathers a profile's tables while samples are added.
#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: HashMap<String, i64>,
    /// By name and file.
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<Place, u64>,
}

/// What makes a location: the mapping, the address, and function and line of each call there.
type Place = (u64, u64, Vec<(u64, i64)>);

impl Builder {
    /// The mappings of a capture, those of the executable first.
    fn new(capture: &Capture, exe: &str) -> Self {
        let mut builder = Self::default();
        let intervals = &capture.intervals;
        let modules = intervals.iter().flat_map(|interval| &interval.modules);
        let modules: HashMap<_, _> = modules.map(|module| (module.id, module)).collect();
        let mappings = intervals.iter().flat_map(|interval| &interval.mappings);
        let mut mappings: Vec<_> = mappings
            .filter_map(|mapping| Some((mapping, *modules.get(&mapping.module)?)))
            .collect();
        mappings.sort_by_key(|(mapping, module)| (module.path != exe, mapping.start));
        for (mapping, module) in mappings {
            let filename = builder.string(&escape(&module.path));
            let build_id = builder.string(&escape(&module.build_id));
            builder.profile.mapping.push(Mapping {
                id: builder.profile.mapping.len() as u64 + 1,
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.file_offset,
                filename,
                build_id,
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            });
        }
        builder
    }

    fn string(&mut self, text: &str) -> i64 {
        if text.is_empty() {
            return 0;
        }
        if let Some(&index) = self.strings.get(text) {
            return index;
        }
        let table = &mut self.profile.string_table;
        if table.is_empty() {
            table.push(String::new());
        }
        let index = table.len() as i64;
        table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType {
            r#type: self.string(name),
            unit: self.string(unit),
        }
    }

    fn labels(&mut self, site: &SiteReport, object_size: Option<u64>) -> Vec<Label> {
        let texts = [
            ("kind", site.kind.to_string()),
            ("verdict", site.verdict.to_string()),
        ];
        let mut labels: Vec<_> = texts
            .iter()
            .map(|(key, text)| Label {
                key: self.string(key),
                str: self.string(text),
                ..Label::default()
            })
            .collect();
        if let Some(size) = object_size {
            // Without a unit, as Go writes it: the key is one.
            labels.push(Label {
                key: self.string("bytes"),
                num: signed(size),
                ..Label::default()
            });
        }
        labels
    }

    /// A stack; calls that were inlined share the location of the function that they ended up in.
    /// `first_pc` is the instruction at which the stack begins, where it does not begin with a call.
    fn locations(&mut self, frames: &[Frame], first_pc: Option<u64>) -> Vec<u64> {
        let functions = frames.split_inclusive(|frame| !frame.inlined);
        functions
            .map(|inlined| {
                // The instruction before the one to which a call returns.
                let address = inlined[0].address;
                let address = match first_pc == Some(address) {
                    true => address,
                    false => address.saturating_sub(1),
                };
                self.location(inlined, address)
            })
            .collect()
    }

    fn location(&mut self, frames: &[Frame], address: u64) -> u64 {
        let contains =
            |mapping: &&Mapping| (mapping.memory_start..mapping.memory_limit).contains(&address);
        let mapping_id = self.profile.mapping.iter().find(contains);
        let mapping_id = mapping_id.map_or(0, |mapping| mapping.id);
        let lines: Vec<_> = frames
            .iter()
            .filter_map(|frame| {
                let function = self.function(frame.function.as_ref()?, frame.file.as_deref());
                Some((function, frame.line.map_or(0, i64::from)))
            })
            .collect();
        let key: Place = (mapping_id, address, lines);
        if let Some(&id) = self.locations.get(&key) {
            return id;
        }
        let id = self.profile.location.len() as u64 + 1;
        let line = key.2.iter();
        let line = line.map(|&(function_id, line)| Line { function_id, line });
        self.profile.location.push(Location {
            id,
            mapping_id,
            address,
            line: line.collect(),
        });
        self.locations.insert(key, id);
        id
    }

    fn function(&mut self, name: &str, file: Option<&str>) -> u64 {
        let name = self.string(&escape(name));
        let filename = self.string(&escape(file.unwrap_or_default()));
        if let Some(&id) = self.functions.get(&(name, filename)) {
            return id;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(Function {
            id,
            name,
            system_name: name,
            filename,
        });
        self.functions.insert((name, filename), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(functions: &[&str]) -> Vec<Frame> {
        let frame = |(address, function): (u64, &&str)| Frame {
            function: Some((*function).to_owned()),
            address,
            ..Frame::default()
        };
        (10..).zip(functions).map(frame).collect()
    }

    #[test]
    fn a_stack_begins_where_go_lets_it_begin() {
        let begin = |functions: &[&str]| as_go_does(frames(functions))[0].function.clone();
        let stack = [
            "runtime.mallocgc",
            "internal/runtime/maps.NewMap",
            "reflect.New",
            "runtime.main",
        ];
        assert_eq!(begin(&stack).unwrap(), "reflect.New");
        assert_eq!(
            begin(&["runtime.malg", "runtime.main"]).unwrap(),
            "runtime.malg"
        );
        let main = as_go_does(frames(&["main.main", "runtime.main", "runtime.goexit"]));
        assert_eq!(main.len(), 2);
        assert!(as_go_does(Vec::new()).is_empty());
    }

    #[test]
    fn inlined_calls_share_a_location() {
        let mut stack = frames(&["inlined", "caller", "main"]);
        stack[0].inlined = true;
        let mut builder = Builder::default();
        assert_eq!(builder.locations(&stack, Some(10)), [1, 2]);
        assert_eq!(builder.locations(&stack, Some(10)), [1, 2]);
        let locations = &builder.profile.location;
        assert_eq!((locations[0].address, locations[0].line.len()), (10, 2));
        // The instruction of the call, not the one after it.
        assert_eq!((locations[1].address, locations[1].line.len()), (11, 1));
    }
}
