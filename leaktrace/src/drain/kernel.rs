//! The kernel's maps, typed.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    util::nr_cpus,
};
use leaktrace_common::{
    GoSample, GoSampling, LiveObject, MALLOC_ALLOC_BYTES, MALLOC_ALLOCS, MALLOC_FREES,
    SiteCounters, SiteKey, StackId, StackRecord, VmEvent, loss,
};

use crate::capture::schema;
use crate::loader::{LoadError, Loaded, MapSizes, for_each_entry};

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
    malloc_calls: PerCpuArray<MapData, u64>,
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
            malloc_calls: typed(ebpf, "MALLOC_CALLS")?,
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

    /// Sets how densely blocks of native allocators are taken, in bytes for each sample: 1 takes all of
    /// them, 0 none.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_malloc_rate(&mut self, rate: u64) -> Result<(), LoadError> {
        self.malloc_rate
            .set(0, rate, 0)
            .map_err(|error| LoadError::other("set the sampling rate", error))
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
