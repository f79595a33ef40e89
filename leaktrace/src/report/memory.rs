//! The memory statement: resident memory by what it is for, in lines that add up.
//!
//! Two counts meet here: the kernel's, of what is resident, and the Go runtime's own, of what it
//! uses, of which nothing need be resident. Where they differ, a line says by how much.

use super::allocators::AllocatorReport;
use super::build::{SERIES_POINTS, milli};
use super::human;
use super::schema::{MemoryPart, MemoryReport};
use crate::capture::Capture;
use crate::capture::schema::Memory;
use crate::series;

/// A part of the resident memory: its name in JSON, and in words.
type Name = (&'static str, &'static str);

const HEAP: Name = ("go_heap_in_use", "Go heap in use");
const IDLE: Name = (
    "go_heap_idle",
    "Go heap idle, kept by the runtime for later",
);
const STACKS: Name = ("go_stacks", "goroutine stacks");
const WORK: Name = ("go_work_buffers", "the Go collector's work buffers");
const NOT_RESIDENT: Name = ("go_not_resident", "of these not resident");
const BEYOND: Name = ("go_beyond", "resident in the Go heap beyond these");
const TABLES: Name = ("go_tables", "the Go runtime's own tables");
const BREAK: Name = ("program_break", "program break (malloc)");
const THREADS: Name = ("thread_stacks", "thread stacks");
const COPIES: Name = ("file_copies", "data of the executable and libraries");
const OTHER: Name = (
    "other_anonymous",
    "other memory without a file (malloc, mmap)",
);
const UNKNOWN: Name = ("anonymous", "memory without a file");
const FILES: Name = ("files", "files mapped, code, shared memory");

/// In the order of the statement.
const NAMES: [Name; 13] = [
    HEAP,
    IDLE,
    STACKS,
    WORK,
    NOT_RESIDENT,
    BEYOND,
    TABLES,
    BREAK,
    THREADS,
    COPIES,
    OTHER,
    UNKNOWN,
    FILES,
];

/// The parts of the resident memory. Their sum is `rss`.
fn parts(memory: &Memory, is_go: bool) -> Vec<(Name, i64)> {
    let Some(rss) = memory.rss else {
        return Vec::new();
    };
    // Of a kernel that does not say what of it is files', all of it.
    let anonymous = memory.anonymous.unwrap_or(rss).min(rss);
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut parts = Vec::new();
    let mut go = [
        (HEAP, memory.go_heap_live),
        (IDLE, memory.go_heap_idle),
        (STACKS, memory.go_stacks),
        (WORK, memory.go_work_buffers),
    ]
    .into_iter()
    .filter_map(|(name, bytes)| Some((name, signed(bytes?))))
    .collect::<Vec<_>>();
    let in_arenas: i64 = go
        .iter()
        .map(|(_, bytes)| *bytes)
        .fold(0, i64::saturating_add);
    let tables = signed(memory.go_tables.unwrap_or(0));
    parts.append(&mut go);
    match &memory.resident {
        Some(resident) => {
            if is_go {
                let beyond = signed(resident.go_arenas).saturating_sub(in_arenas);
                parts.push((if beyond < 0 { NOT_RESIDENT } else { BEYOND }, beyond));
            }
            let other = signed(resident.other);
            // As much of the tables as can be: where they are is not known.
            parts.push((TABLES, tables.min(other)));
            parts.push((BREAK, signed(resident.program_break)));
            parts.push((THREADS, signed(resident.thread_stacks)));
            parts.push((COPIES, signed(resident.file_copies)));
            parts.push((OTHER, other - tables.min(other)));
        }
        None => {
            let rest = signed(anonymous)
                .saturating_sub(in_arenas)
                .saturating_sub(tables);
            parts.push((TABLES, tables));
            parts.push(match rest {
                ..0 => (NOT_RESIDENT, rest),
                _ if in_arenas > 0 => (OTHER, rest),
                _ => (UNKNOWN, rest),
            });
        }
    }
    parts.push((FILES, signed(rss - anonymous)));
    parts.retain(|(_, bytes)| *bytes != 0);
    parts
}

/// The statement of a capture.
pub(super) fn statement(capture: &Capture) -> MemoryReport {
    let mut states = capture.intervals.iter().filter_map(|interval| {
        let memory = interval.memory.as_ref()?;
        memory.rss.map(|_| (interval.t_ns, memory))
    });
    let Some((attach_ns, attach)) = states.next() else {
        return MemoryReport::default();
    };
    let (end_ns, end) = states.next_back().unwrap_or((attach_ns, attach));
    let is_before_end = capture
        .intervals
        .last()
        .is_some_and(|last| last.t_ns > end_ns);
    let target = capture.header.target.as_ref();
    let is_go = target.is_some_and(|target| target.go.is_some());
    let before = parts(attach, is_go);
    // Two readings that were made in different ways do not compare.
    let comparable = attach.resident.is_some() == end.resident.is_some();
    let bytes_of = |parts: &[(Name, i64)], name: Name| {
        let found = parts.iter().find(|(other, _)| *other == name);
        found.map_or(0, |(_, bytes)| *bytes)
    };
    let parts = parts(end, is_go);
    let unexplained = bytes_of(&parts, OTHER).unsigned_abs();
    // What was there at the attach and is no more has a line too: both columns add up.
    let names = NAMES.into_iter().filter(|name| {
        let is_in = |parts: &[(Name, i64)]| parts.iter().any(|(other, _)| other == name);
        is_in(&parts) || comparable && is_in(&before)
    });
    MemoryReport {
        allocators: None,
        rss_bytes: end.rss,
        end_s: is_before_end.then(|| milli(end_ns as f64 / 1e9)),
        rss_attach_bytes: attach.rss,
        anonymous_bytes: end.anonymous,
        swap_bytes: end.swap,
        mapped_bytes: end.mapped,
        heap_live_bytes: end.go_heap_live,
        heap_objects_bytes: end.go_heap_objects,
        heap_idle_bytes: end.go_heap_idle,
        heap_released_bytes: end.go_heap_released,
        stacks_bytes: end.go_stacks,
        runtime_bytes: end
            .go_tables
            .map(|tables| tables.saturating_add(end.go_work_buffers.unwrap_or(0))),
        unexplained_bytes: end.go_heap_live.map(|_| unexplained),
        parts: names
            .map(|name| MemoryPart {
                part: name.0.to_owned(),
                text: name.1.to_owned(),
                bytes: bytes_of(&parts, name),
                attach_bytes: comparable.then(|| bytes_of(&before, name)),
            })
            .collect(),
        series: resident_over_time(capture),
    }
}

fn resident_over_time(capture: &Capture) -> Vec<(f64, u64)> {
    let points = capture.intervals.iter().filter_map(|interval| {
        let rss = interval.memory.as_ref()?.rss?;
        Some((milli(interval.t_ns as f64 / 1e9), rss))
    });
    series::thin(&points.collect::<Vec<_>>(), SERIES_POINTS)
}

/// The statement as lines of text.
pub(super) fn lines(memory: &MemoryReport) -> Vec<String> {
    let Some(rss) = memory.rss_bytes else {
        return Vec::new();
    };
    let column = |bytes: Option<i64>| match bytes {
        Some(bytes) => format!("{:>11}", human::bytes(bytes as f64)),
        None => format!("{:>11}", ""),
    };
    let line = |bytes: i64, before: Option<i64>, text: &str| {
        format!("  {} {}  {text}", column(Some(bytes)), column(before))
    };
    let end = memory.end_s.map_or("at end".to_owned(), |end| {
        format!("at {}", human::seconds(end))
    });
    let mut lines = vec![format!("memory:  {end:>7}  at attach")];
    if memory.end_s.is_some() {
        lines.push("  as last read before the process was gone".to_owned());
    }
    let objects = memory
        .heap_objects_bytes
        .map(|bytes| format!(" ({} of it in objects)", human::bytes(bytes as f64)));
    for part in &memory.parts {
        let objects = objects.as_deref().filter(|_| part.part == HEAP.0);
        let unexplained = match part.part == OTHER.0 && memory.unexplained_bytes.is_some() {
            true => "; not explained",
            false => "",
        };
        let text = format!("{}{}{unexplained}", part.text, objects.unwrap_or_default());
        lines.push(line(part.bytes, part.attach_bytes, &text));
    }
    let before = memory.rss_attach_bytes.map(|bytes| bytes as i64);
    lines.push(line(rss as i64, before, "resident"));
    let beside = [
        (memory.swap_bytes, "swapped out"),
        (
            memory.heap_released_bytes,
            "Go heap given back to the kernel",
        ),
        (memory.mapped_bytes, "address space"),
    ];
    let beside: Vec<_> = beside
        .into_iter()
        .filter_map(|(bytes, what)| {
            Some(format!(
                "{} {what}",
                human::bytes(bytes.filter(|b| *b > 0)? as f64)
            ))
        })
        .collect();
    if !beside.is_empty() {
        lines.push(format!("  not in it: {}", beside.join(", ")));
    }
    lines.extend(memory.allocators.iter().flat_map(AllocatorReport::lines));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::schema::Residency;

    const MIB: u64 = 1 << 20;

    fn go() -> Memory {
        Memory {
            rss: Some(100 * MIB),
            anonymous: Some(90 * MIB),
            go_heap_live: Some(60 * MIB),
            go_heap_idle: Some(20 * MIB),
            go_stacks: Some(MIB),
            go_work_buffers: Some(MIB),
            go_tables: Some(3 * MIB),
            ..Memory::default()
        }
    }

    fn of(parts: &[(Name, i64)], name: Name) -> i64 {
        let found = parts.iter().find(|part| part.0 == name);
        found.map_or(0, |part| part.1 >> 20)
    }

    fn sum(parts: &[(Name, i64)]) -> i64 {
        parts.iter().map(|(_, bytes)| bytes >> 20).sum()
    }

    #[test]
    fn the_lines_add_up_to_what_is_resident() {
        let parts = parts(&go(), true);
        assert_eq!(sum(&parts), 100);
        assert_eq!((of(&parts, OTHER), of(&parts, FILES)), (5, 10));
    }

    #[test]
    fn what_is_not_resident_is_a_line_of_its_own() {
        let mut memory = go();
        memory.go_heap_idle = Some(40 * MIB);
        let by_status = parts(&memory, true);
        assert_eq!(sum(&by_status), 100);
        assert_eq!(
            (of(&by_status, NOT_RESIDENT), of(&by_status, OTHER)),
            (-15, 0)
        );

        memory.resident = Some(Residency {
            go_arenas: 75 * MIB,
            program_break: 2 * MIB,
            thread_stacks: MIB,
            file_copies: 4 * MIB,
            other: 8 * MIB,
            took_ns: 1,
        });
        let by_mapping = parts(&memory, true);
        assert_eq!(sum(&by_mapping), 100);
        assert_eq!(of(&by_mapping, NOT_RESIDENT), 75 - 102);
        assert_eq!((of(&by_mapping, TABLES), of(&by_mapping, OTHER)), (3, 5));
    }

    #[test]
    fn a_native_program_has_what_the_kernel_tells() {
        let mut memory = Memory {
            rss: Some(10 * MIB),
            anonymous: Some(6 * MIB),
            ..Memory::default()
        };
        assert_eq!(
            parts(&memory, false),
            [(UNKNOWN, 6 << 20), (FILES, 4 << 20)]
        );
        memory.resident = Some(Residency {
            program_break: 5 * MIB,
            other: MIB,
            ..Residency::default()
        });
        let expected = [(BREAK, 5 << 20), (OTHER, 1 << 20), (FILES, 4 << 20)];
        assert_eq!(parts(&memory, false), expected);
        assert_eq!(parts(&Memory::default(), false), []);
    }
}
