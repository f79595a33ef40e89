//! The kernel's maps, typed.

use std::{
    collections::{self, HashSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue, RingBuf},
    util::nr_cpus,
};
use leaktrace_common::{
    BlockEvent, CLASS_BITS, GoSample, GoSampling, LIVE_LEVEL, LIVE_REMOVED, LiveObject,
    MALLOC_ALLOC_BYTES, MALLOC_ALLOCS, MALLOC_FREES, OOM_VICTIM, PROCESS_SHIFT, SAMPLING_LEVELS,
    SiteCounters, SiteKey, StackId, StackRecord, VmEvent, WINDOW_LOOK, loss,
};

use crate::capture::schema;
use crate::loader::{LoadError, Loaded, MapSizes, ThreadRegisters, for_each_entry};

/// What the kernel side writes, taken out of a loaded object.
pub struct Kernel {
    events: RingBuf<MapData>,
    stacks: HashMap<MapData, u64, StackRecord>,
    live: Map,
    counters: Map,
    losses: PerCpuArray<MapData, u64>,
    samples: RingBuf<MapData>,
    go_sampling: Array<MapData, GoSampling>,
    go_hits: PerCpuArray<MapData, u64>,
    malloc_rate: Array<MapData, u64>,
    malloc_rates: [u64; SAMPLING_LEVELS as usize],
    live_state: Array<MapData, u64>,
    malloc_calls: PerCpuArray<MapData, u64>,
    malloc_window: Array<MapData, u64>,
    processes: HashMap<MapData, u32, u64>,
    process_numbers: Queue<MapData, u64>,
    blocks: RingBuf<MapData>,
    ending: Array<MapData, u64>,
    /// What threads have in their registers, or why that cannot be read; none if it is not asked for.
    pub(crate) registers: Option<Result<ThreadRegisters, LoadError>>,
    sizes: MapSizes,
    cpus: usize,
}

impl Kernel {
    /// Takes the maps out of `loaded`, which was loaded with these sizes.
    ///
    /// # Errors
    ///
    /// The object lacks a map, or it is of another type.
    pub fn take(loaded: &mut Loaded, sizes: MapSizes) -> Result<Self, LoadError> {
        let ebpf = &mut loaded.ebpf;
        Ok(Self {
            events: typed(ebpf, "EVENTS")?,
            stacks: typed(ebpf, "STACKS")?,
            live: take(ebpf, "LIVE")?,
            counters: take(ebpf, "COUNTERS")?,
            losses: typed(ebpf, "LOSSES")?,
            samples: typed(ebpf, "SAMPLES")?,
            go_sampling: typed(ebpf, "GO_SAMPLING")?,
            go_hits: typed(ebpf, "GO_HITS")?,
            malloc_rate: typed(ebpf, "MALLOC_RATE")?,
            malloc_rates: [0; SAMPLING_LEVELS as usize],
            live_state: typed(ebpf, "LIVE_STATE")?,
            malloc_calls: typed(ebpf, "MALLOC_CALLS")?,
            malloc_window: typed(ebpf, "MALLOC_WINDOW")?,
            processes: typed(ebpf, "PROCESSES")?,
            process_numbers: typed(ebpf, "PROCESS_NUMBERS")?,
            blocks: typed(ebpf, "BLOCKS")?,
            ending: typed(ebpf, "ENDING")?,
            registers: None,
            sizes,
            cpus: nr_cpus().map_err(|(_, error)| LoadError::other("count the CPUs", error))?,
        })
    }

    /// Records that the ring buffer can hold.
    pub fn ring_records(&self) -> u32 {
        self.sizes.ring_records()
    }

    /// Takes the next record out of the ring buffer.
    pub fn next_event(&mut self) -> Option<VmEvent> {
        loop {
            let item = self.events.next()?;
            if let Some(event) = pod(&item) {
                return Some(event);
            }
        }
    }

    /// Whether the kernel has chosen the target to be killed for want of memory.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn is_oom_victim(&self) -> Result<bool, LoadError> {
        let ending = self.ending.get(&0, 0);
        let ending = ending.map_err(|error| LoadError::other("read how the target ends", error))?;
        Ok(ending & OOM_VICTIM != 0)
    }

    /// Our own samples that their ring buffer can hold.
    pub(super) fn ring_samples(&self) -> u32 {
        self.sizes.ring_samples()
    }

    /// Takes the next of our own samples.
    pub(super) fn next_sample(&mut self) -> Option<GoSample> {
        loop {
            let item = self.samples.next()?;
            if let Some(sample) = pod(&item) {
                return Some(sample);
            }
        }
    }

    /// Sets how densely our own sampling takes objects, for one kind of hit.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_go_sampling(&mut self, kind: u32, sampling: GoSampling) -> Result<(), LoadError> {
        self.go_sampling
            .set(kind, sampling, 0)
            .map_err(|error| LoadError::other("set the sampling rate", error))
    }

    /// Hits of our own sampling's probes since the attach, of one kind.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn go_hits(&self, kind: u32) -> Result<u64, LoadError> {
        let hits = self.go_hits.get(&kind, 0);
        let hits = hits.map_err(|error| LoadError::other("read the hit counters", error))?;
        Ok(hits.iter().sum())
    }

    /// No block of native allocators is taken from now on.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn stop_malloc(&mut self) -> Result<(), LoadError> {
        for level in 0..SAMPLING_LEVELS {
            self.malloc_rate
                .set(level, 0, 0)
                .map_err(|error| LoadError::other("set the sampling rate", error))?;
        }
        Ok(())
    }

    /// Sets how densely blocks of native allocators are taken, in bytes for each sample: 1 takes all of
    /// them, 0 none. Gives what was set: not all that a user may ask for fits. The kernel side makes it
    /// coarser as the live-object map fills.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_malloc_rate(&mut self, rate: u64) -> Result<u64, LoadError> {
        self.malloc_rates = levels(rate);
        for (level, rate) in (0..).zip(self.malloc_rates) {
            self.malloc_rate
                .set(level, rate, 0)
                .map_err(|error| LoadError::other("set the sampling rate", error))?;
        }
        Ok(self.malloc_rates[0])
    }

    /// How often that was made coarser since the attach, and the bytes for each sample that it is now.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn malloc_level(&self) -> Result<(u32, u64), LoadError> {
        let level = self.live_state.get(&LIVE_LEVEL, 0);
        let level = level.map_err(|error| LoadError::other("read the sampling level", error))?;
        let level = (level as u32).min(SAMPLING_LEVELS - 1);
        Ok((level, self.malloc_rates[level as usize]))
    }

    /// By which size a site's blocks were sampled, and one in how many bytes.
    pub fn sampled_by(&self, site: SiteKey) -> (u64, u64) {
        let level = (site.class >> CLASS_BITS) as usize;
        let rate = self.malloc_rates.get(level).copied().unwrap_or_default();
        (u64::from(site.class & ((1 << CLASS_BITS) - 1)), rate)
    }

    /// All calls of native allocators since the attach, sampled or not.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn malloc_calls(&self) -> Result<schema::MallocCalls, LoadError> {
        let counter = |index: u32| {
            let values = self.malloc_calls.get(&index, 0);
            let values =
                values.map_err(|error| LoadError::other("read the call counters", error))?;
            Ok(values.iter().sum())
        };
        Ok(schema::MallocCalls {
            allocs: counter(MALLOC_ALLOCS)?,
            alloc_bytes: counter(MALLOC_ALLOC_BYTES)?,
            frees: counter(MALLOC_FREES)?,
        })
    }

    /// Opens the window of that number, in which births and deaths of native allocators' blocks are sent; zero
    /// closes it.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_malloc_window(&mut self, number: u64) -> Result<(), LoadError> {
        self.malloc_window
            .set(0, number, 0)
            .map_err(|error| LoadError::other("open a window", error))
    }

    /// Runs `look` in a window of its own, in which calls are counted and nothing is sent. A call that is under way at
    /// its end is forgotten: nobody waits for its return when the probes are there for good.
    ///
    /// # Errors
    ///
    /// The map cannot be written, or as of `look`.
    pub fn while_looking<T>(
        &mut self,
        look: impl FnOnce(&Self) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        self.set_malloc_window(WINDOW_LOOK)?;
        let seen = look(self);
        self.set_malloc_window(0)?;
        seen
    }

    /// Takes the births and deaths of blocks out of their ring buffer.
    pub(super) fn take_blocks(&mut self) -> Vec<BlockEvent> {
        let mut events = Vec::new();
        // Not more than it can hold: nobody sends any more when this is called.
        while (events.len() as u32) < self.sizes.ring_blocks() {
            let Some(item) = self.blocks.next() else {
                break;
            };
            events.extend(pod::<BlockEvent>(&item));
        }
        events
    }

    /// The stack with that id, if it was kept.
    pub fn stack(&self, id: StackId) -> Option<StackRecord> {
        self.stacks.get(&id.0, 0).ok()
    }

    /// Calls `visit` with the address of every live object.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn for_each_live(&self, mut visit: impl FnMut(u64, LiveObject)) -> Result<(), LoadError> {
        for_each_entry(
            map_data(&self.live)?.fd().as_fd(),
            size_of::<u64>(),
            size_of::<LiveObject>(),
            self.sizes.live_objects as usize,
            |key, value| {
                if let (Some(address), Some(object)) = (pod(key), pod(value)) {
                    visit(address, object);
                }
            },
        )
        .map_err(|error| LoadError::other("read the live-object map", error))
    }

    /// Calls `visit` with the totals of every site, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn for_each_site(
        &self,
        mut visit: impl FnMut(SiteKey, SiteCounters),
    ) -> Result<(), LoadError> {
        const VALUE: usize = size_of::<SiteCounters>();
        for_each_entry(
            map_data(&self.counters)?.fd().as_fd(),
            size_of::<SiteKey>(),
            VALUE * self.cpus,
            self.sizes.sites as usize,
            |key, values| {
                let Some(key) = pod(key) else { return };
                let mut sum = SiteCounters::default();
                for counters in values.chunks(VALUE).filter_map(pod::<SiteCounters>) {
                    sum.allocs += counters.allocs;
                    sum.alloc_bytes += counters.alloc_bytes;
                    sum.frees += counters.frees;
                    sum.free_bytes += counters.free_bytes;
                }
                visit(key, sum);
            },
        )
        .map_err(|error| LoadError::other("read the site map", error))
    }

    /// Follows processes that followed ones make: so many at a time.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn follow_forks(&mut self, processes: u32) -> Result<(), LoadError> {
        (1..=u64::from(processes)).try_for_each(|number| self.give_number(number))
    }

    fn give_number(&mut self, number: u64) -> Result<(), LoadError> {
        self.process_numbers
            .push(number, 0)
            .map_err(|error| LoadError::other("number processes", error))
    }

    /// Becomes readable when a process was made or has become another program.
    ///
    /// # Errors
    ///
    /// There are no file descriptors left.
    pub fn process_events(&self) -> io::Result<OwnedFd> {
        self.events.as_fd().try_clone_to_owned()
    }

    /// Takes a process out of those that are followed; its blocks must not be in the live set any more. Its number
    /// is another one's then.
    ///
    /// # Errors
    ///
    /// A map cannot be read or written.
    pub(super) fn forget_process(&mut self, pid: i32, number: u64) -> Result<(), LoadError> {
        let pid = pid as u32;
        // It is not there if it has become another program, and another's if that has the same id.
        if self.processes.get(&pid, 0).ok() == Some(number << PROCESS_SHIFT) {
            let _ = self.processes.remove(&pid);
        }
        self.give_number(number)
    }

    /// Takes the blocks of the processes with these numbers out of the live set, and tells of each.
    ///
    /// # Errors
    ///
    /// A map cannot be read or written.
    pub(super) fn forget_blocks(
        &mut self,
        numbers: &HashSet<u64>,
        mut died: impl FnMut(&LiveObject),
    ) -> Result<(), LoadError> {
        let failed = |error| LoadError::other("take out a process's blocks", error);
        let mut blocks = Vec::new();
        self.for_each_live(|key, object| {
            if numbers.contains(&(key >> PROCESS_SHIFT)) {
                blocks.push((key, object));
            }
        })?;
        let mut live = HashMap::<_, u64, LiveObject>::try_from(&mut self.live).map_err(failed)?;
        let mut removed = self.live_state.get(&LIVE_REMOVED, 0).map_err(failed)?;
        for (key, object) in &blocks {
            if live.remove(key).is_ok() {
                removed += 1;
                died(object);
            }
        }
        self.live_state
            .set(LIVE_REMOVED, removed, 0)
            .map_err(failed)
    }

    /// The totals of all sites of a kind.
    ///
    /// # Errors
    ///
    /// As [`Kernel::for_each_site`].
    pub fn totals(
        &self,
        kind: u32,
    ) -> Result<collections::HashMap<SiteKey, SiteCounters>, LoadError> {
        let mut totals = collections::HashMap::new();
        self.for_each_site(|key, counters| {
            if key.kind == kind {
                totals.insert(key, counters);
            }
        })?;
        Ok(totals)
    }

    /// Counts of the kernel side's losses, in the order of [`crate::loss::KERNEL`].
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn losses(&self) -> Result<[u64; loss::COUNT as usize], LoadError> {
        let mut counts = [0; loss::COUNT as usize];
        for (index, count) in (0..).zip(&mut counts) {
            let values = self
                .losses
                .get(&index, 0)
                .map_err(|error| LoadError::other("read the loss counters", error))?;
            *count = values.iter().sum();
        }
        Ok(counts)
    }
}

/// Bytes for each sample by level: each level takes an eighth of the blocks that the one before takes. A
/// map that has room for 65,536 objects is not full before 200 GiB of small ones live.
fn levels(rate: u64) -> [u64; SAMPLING_LEVELS as usize] {
    /// The first that leaves blocks out, where all are taken before.
    const FINEST: u64 = 16 << 10;
    /// What fits a site's key.
    const COARSEST: u64 = 1 << (CLASS_BITS - 1);
    let mut next = rate.min(COARSEST);
    std::array::from_fn(|_| {
        let rate = next;
        next = match rate {
            1 => FINEST,
            _ => (rate * 8).min(COARSEST),
        };
        rate
    })
}

/// The value whose bytes these are, if there are enough of them.
fn pod<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: any bytes are a valid value of a Pod type, and there are enough of them.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| LoadError::other("find a map in the BPF object", name.to_owned()))
}

fn typed<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, LoadError> {
    M::try_from(take(ebpf, name)?).map_err(|error| LoadError::other("use a map", error))
}

fn map_data(map: &Map) -> Result<&MapData, LoadError> {
    match map {
        Map::HashMap(data) | Map::PerCpuHashMap(data) => Ok(data),
        _ => Err(LoadError::other(
            "use a map",
            "it is not a hash map".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_coarser_until_the_class_has_no_more_bits() {
        assert_eq!(levels(0), [0; 8]);
        let of_all = [
            1,
            1 << 14,
            1 << 17,
            1 << 20,
            1 << 23,
            1 << 26,
            1 << 27,
            1 << 27,
        ];
        assert_eq!(levels(1), of_all);
        assert_eq!(levels(1 << 19)[..4], [1 << 19, 1 << 22, 1 << 25, 1 << 27]);
        assert_eq!(levels(1 << 30), [1 << 27; 8]);
    }
}
