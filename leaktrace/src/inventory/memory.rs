//! What a process's memory is used for: by the kernel's count, and by the Go runtime's own.
//!
//! Every interval takes `/proc/PID/status` and the runtime's counters, a few microseconds without a
//! lock. Only the first and the last go through all mappings.

use std::time::{Duration, Instant};

use super::word;
use crate::{
    capture::schema,
    go::{GoVariable, MemStatsLayout},
    target::{Backing, GoTarget, Resident, Target},
};

/// The longest that the mappings may take: the probes are live meanwhile.
const MAPPINGS_WITHIN: Duration = Duration::from_secs(1);

/// Size of an arena and the address of the first (runtime/malloc.go `heapArenaBytes`,
/// `arenaBaseOffset`, linux/amd64, Go 1.19 to 1.27).
const ARENA_BYTES: u64 = 64 << 20;
const ARENA_BASE: u64 = 0xffff_8000_0000_0000;
/// More arenas than this are not followed: 4 TiB.
const MAX_ARENAS: u64 = 1 << 16;
/// More threads than this are not looked at.
const MAX_THREADS: usize = 4096;
/// A larger mapping is no thread's stack, even if a thread's stack pointer is in it.
const MAX_STACK: u64 = 64 << 20;

/// Reads the memory of one process.
pub struct MemoryReader<'a> {
    target: &'a Target,
    go: Option<Go>,
    whole: bool,
    limits: Vec<schema::Limit>,
}

/// Where a Go runtime counts.
struct Go {
    stats: u64,
    layout: MemStatsLayout,
    /// Slices of arena numbers.
    arenas: Vec<u64>,
}

impl<'a> MemoryReader<'a> {
    /// Nothing read yet; the first reading will go through the mappings.
    pub fn new(target: &'a Target) -> Self {
        let mut reader = Self {
            target,
            go: None,
            whole: true,
            limits: Vec::new(),
        };
        if let Some(Ok(go)) = &target.go {
            match Go::find(go) {
                Ok(go) => reader.go = Some(go),
                Err(reason) => reader.limit("what the Go runtime's memory is used for", reason),
            }
        }
        reader
    }

    /// The next reading is to go through the mappings.
    pub fn whole_next(&mut self) {
        self.whole = true;
    }

    /// What could not be read.
    pub fn limits(&self) -> &[schema::Limit] {
        &self.limits
    }

    /// The memory now. `None`: the target is gone.
    pub fn read(&mut self) -> Option<schema::Memory> {
        let status = self.target.memory_use().ok()?;
        let mut memory = schema::Memory {
            rss: status.rss,
            anonymous: status.anonymous,
            swap: status.swap,
            mapped: status.mapped,
            ..schema::Memory::default()
        };
        if let Some(go) = &self.go {
            go.read(self.target, &mut memory);
        }
        if std::mem::take(&mut self.whole) && status.rss.is_some() {
            let start = Instant::now();
            match self.target.smaps(MAPPINGS_WITHIN) {
                Ok(mappings) => {
                    let mut resident = self.resident(&mappings);
                    resident.took_ns = start.elapsed().as_nanos() as u64;
                    // By the same count: that of the status may be behind.
                    memory.rss = Some(mappings.iter().map(|m| m.rss).sum());
                    memory.anonymous = Some(mappings.iter().map(|m| m.anonymous).sum());
                    memory.resident = Some(resident);
                }
                Err(error) => self.limit("which mappings are resident", error.to_string()),
            }
        }
        Some(memory)
    }

    fn limit(&mut self, what: &str, reason: String) {
        self.limits.push(schema::Limit {
            what: what.to_owned(),
            reason,
        });
    }

    /// Resident memory without a file, by what it is for.
    fn resident(&self, mappings: &[Resident]) -> schema::Residency {
        let arenas = self
            .go
            .as_ref()
            .map_or(Vec::new(), |go| go.arenas(self.target));
        let stack_pointers = self.target.stack_pointers(MAX_THREADS);
        let mut resident = schema::Residency::default();
        let mut after_data = None;
        for mapping in mappings {
            let within = |address: &u64| (mapping.start..mapping.end).contains(address);
            let is_executable =
                matches!(&mapping.backing, Backing::File(path) if *path == self.target.exe);
            let part = match &mapping.backing {
                Backing::File(_) | Backing::Kernel => &mut resident.file_copies,
                Backing::Break => &mut resident.program_break,
                Backing::Stack => &mut resident.thread_stacks,
                // The executable's zeroed data.
                Backing::Anonymous if after_data == Some(mapping.start) => {
                    &mut resident.file_copies
                }
                Backing::Anonymous
                    if arenas.iter().any(|&arena| {
                        arena < mapping.end && mapping.start < arena.saturating_add(ARENA_BYTES)
                    }) =>
                {
                    &mut resident.go_arenas
                }
                Backing::Anonymous
                    if mapping.end - mapping.start <= MAX_STACK
                        && stack_pointers.iter().any(within) =>
                {
                    &mut resident.thread_stacks
                }
                Backing::Anonymous => &mut resident.other,
            };
            *part += mapping.anonymous;
            after_data = (is_executable && mapping.writable).then_some(mapping.end);
        }
        resident
    }
}

impl Go {
    fn find(go: &GoTarget) -> Result<Self, String> {
        let layout = go.binary.layout().map_err(|error| error.to_string())?;
        let heap = go.address(GoVariable::MHeap)?;
        // Before Go 1.25 one list had both.
        let slices = ["allArenas", "heapArenas", "userArenaArenas"];
        let offsets = slices
            .iter()
            .filter_map(|field| layout.offset("runtime.mheap", field).ok());
        Ok(Self {
            stats: go.address(GoVariable::MemStats)?,
            layout: MemStatsLayout::of(layout).map_err(|error| error.to_string())?,
            arenas: offsets.map(|offset| heap.wrapping_add(offset)).collect(),
        })
    }

    /// Of three copies the one in the middle by what is committed: the runtime moves counts from
    /// one set to another now and then, and a copy taken then counts some twice.
    fn read(&self, target: &Target, memory: &mut schema::Memory) {
        let copy = || {
            let mut bytes = vec![0; self.layout.size()];
            target.memory.read(self.stats, &mut bytes).ok()?;
            self.layout.parse(&bytes)
        };
        let mut copies: Vec<_> = (0..3).filter_map(|_| copy()).collect();
        copies.sort_by_key(|copy| copy.committed());
        let Some(go) = copies.get(copies.len() / 2) else {
            return;
        };
        memory.go_heap_live = Some(go.heap_in_use);
        memory.go_heap_objects = Some(go.heap_objects);
        memory.go_heap_idle = Some(go.heap_idle);
        memory.go_heap_released = Some(go.heap_released);
        memory.go_stacks = Some(go.stacks);
        memory.go_work_buffers = Some(go.work_buffers);
        memory.go_tables = Some(go.tables);
    }

    /// Addresses of the heap's arenas.
    fn arenas(&self, target: &Target) -> Vec<u64> {
        let list = |slice: u64| {
            let mut header = [0; 16];
            target.memory.read(slice, &mut header).ok()?;
            let (array, len) = (word(&header, 0), word(&header, 8).min(MAX_ARENAS));
            let mut numbers = vec![0; 8 * len as usize];
            target.memory.read(array, &mut numbers).ok()?;
            Some(numbers)
        };
        let lists = self.arenas.iter().filter_map(|slice| list(*slice));
        let mut arenas = Vec::new();
        for numbers in lists {
            arenas.extend(numbers.chunks(8).map(|number| {
                word(number, 0)
                    .wrapping_mul(ARENA_BYTES)
                    .wrapping_add(ARENA_BASE)
            }));
        }
        arenas
    }
}
