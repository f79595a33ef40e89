//! What the process as a whole has grown by.

use crate::capture::schema::Memory;
use crate::series;

/// Robust growth of the memory that holds what allocators hand out, bytes a second; none where no interval
/// tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessGrowth {
    /// Of resident and swapped memory without a file.
    pub held_bytes_per_s: Option<f64>,
    /// Of the whole address space.
    pub mapped_bytes_per_s: Option<f64>,
    /// How fast what is held grew in the last third of the time, against the first; none where that is not known or
    /// did not grow.
    pub pace: Option<f64>,
}

/// The process's memory by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryHistory {
    /// Slot, seconds and bytes, for resident and swapped memory without a file.
    held: Vec<(usize, f64, f64)>,
    /// The same for the whole address space.
    mapped: Vec<(usize, f64, f64)>,
}

impl MemoryHistory {
    /// Takes in an interval that ends after so many nanoseconds; of those in a slot the last one counts.
    pub(super) fn add(&mut self, slot: usize, t_ns: u64, memory: &Memory) {
        let put = |points: &mut Vec<(usize, f64, f64)>, bytes: Option<u64>| {
            let Some(bytes) = bytes else { return };
            let point = (slot, t_ns as f64 / 1e9, bytes as f64);
            match points.last_mut() {
                Some(last) if last.0 == slot => *last = point,
                _ => points.push(point),
            }
        };
        let held = memory
            .anonymous
            .map(|anonymous| anonymous.saturating_add(memory.swap.unwrap_or(0)));
        put(&mut self.held, held);
        put(&mut self.mapped, memory.mapped);
    }

    /// Joins the slots two by two; the attach stays by itself.
    pub(super) fn halve(&mut self) {
        for points in [&mut self.held, &mut self.mapped] {
            for point in points.iter_mut() {
                point.0 = point.0.div_ceil(2);
            }
            points.dedup_by(|later, earlier| {
                let is_same = later.0 == earlier.0;
                if is_same {
                    *earlier = *later;
                }
                is_same
            });
        }
    }

    pub(super) fn growth(&self) -> ProcessGrowth {
        let slope = |points: &[(usize, f64, f64)]| {
            let points: Vec<_> = points.iter().map(|&(_, t_s, bytes)| (t_s, bytes)).collect();
            (points.len() > 1).then(|| series::slope(&points))
        };
        let third = self.held.len() / 3;
        let (first, last) = (&self.held[..third], &self.held[self.held.len() - third..]);
        let pace = slope(first).zip(slope(last));
        ProcessGrowth {
            held_bytes_per_s: slope(&self.held),
            mapped_bytes_per_s: slope(&self.mapped),
            pace: pace
                .filter(|&(first, _)| first > 0.0)
                .map(|(first, last)| last / first),
        }
    }
}

impl ProcessGrowth {
    /// No live heap can have grown by more than this in the long run; none if it is not known.
    pub fn most_bytes_per_s(self) -> Option<f64> {
        let Self {
            held_bytes_per_s: held,
            mapped_bytes_per_s: mapped,
            ..
        } = self;
        match (held, mapped) {
            (Some(held), Some(mapped)) => Some(held.max(mapped)),
            (held, mapped) => held.or(mapped),
        }
    }
}
