//! Reads the kernel's maps and ring buffer, and turns an interval into a block of the capture.
//!
//! Contract: memory is bounded by the sizes of the kernel's maps; every loss is counted by cause,
//! on both sides of the boundary. With `loader` this is the only module that knows aya.

mod kernel;
mod live_blocks;
mod coarsened;
mod objects;
mod processes;
mod refill;
mod sampler;
mod sites;
mod goroutines;
mod deltas;
mod following;
mod blocks;

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::{
    EVENT_CHILD_EXEC, EVENT_EXEC, EVENT_FORK, EVENT_GC, EVENT_MMAP, KIND_GO_HEAP, KIND_GOROUTINE,
    KIND_MALLOC, Ktime, MAPPED_CODE, SiteCounters, SiteKey, VmEvent,
};

use self::deltas::{add_freed, delta_of, died};
use crate::{
    address_space::{AddressSpace, Change},
    capture::schema,
    inventory::goroutines::LiveSample,
    live_heap,
    loader::LoadError,
    loss,
    record::monotonic_ns,
};

use self::{
    blocks::Blocks,
    coarsened::Steps,
    following::Following,
    objects::{Objects, Turnover},
    processes::Processes,
    sites::Sites,
};
pub use self::{
    coarsened::Coarsened,
    goroutines::{Goroutines, Purpose},
    kernel::Kernel,
    processes::Change as ProcessChange,
    refill::RefillSampler,
    sampler::Sampler,
};

/// Who samples the target's Go heap.
pub enum GoHeap {
    /// Nobody: it has none, or it cannot be read.
    Unsampled,
    /// Go's runtime.
    Runtime(Sampler),
    /// leaktrace.
    Refill(RefillSampler),
}

/// Drains one run.
pub struct Drain {
    kernel: Kernel,
    go: GoHeap,
    space: AddressSpace,
    sites: Sites,
    objects: Objects,
    deltas: BTreeMap<u32, schema::SiteDelta>,
    losses: BTreeMap<&'static str, u64>,
    index: u32,
    gc_cycles: u32,
    looked_at: u32,
    samples: u64,
    own_sampling: OwnSampling,
    following: Following,
    coarsened: Steps,
    blocks: Option<Blocks>,
    processes: Processes,
    events: u64,
    code_mapped: bool,
    exec: bool,
}

/// How our own sampling went in the current interval.
#[derive(Clone, Copy, Debug, Default)]
struct OwnSampling {
    hits: u64,
    share: f64,
}

impl Drain {
    /// Starts to drain `kernel`. `space` holds the mappings that were there at the attach, read
    /// after the probes were live; `malloc` says whether native allocators are probed.
    pub fn new(kernel: Kernel, space: AddressSpace, go: GoHeap, malloc: bool) -> Self {
        Self {
            kernel,
            go,
            space,
            sites: Sites::default(),
            objects: Objects::default(),
            deltas: BTreeMap::new(),
            losses: BTreeMap::new(),
            index: 0,
            gc_cycles: 0,
            looked_at: 0,
            samples: 0,
            own_sampling: OwnSampling::default(),
            following: Following::new(malloc),
            coarsened: Steps::default(),
            blocks: None,
            processes: Processes::default(),
            events: 0,
            code_mapped: false,
            exec: false,
        }
    }

    /// What the kernel side writes.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Samples of our own taken in since the attach.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Notes how our own sampling of the Go heap went: hits of its probes, and for which share of the
    /// time the probe behind refills was attached.
    pub fn own_sampling(&mut self, hits: u64, share: f64) {
        self.own_sampling.hits += hits;
        self.own_sampling.share = share;
    }

    /// Empties the ring buffer. Call it several times an interval, so that bursts fit.
    pub fn take_events(&mut self) {
        // Not more than it can hold at once: a target that writes as fast as we read must not keep us here.
        for _ in 0..self.kernel.ring_records() {
            let Some(event) = self.kernel.next_event() else {
                break;
            };
            self.events += 1;
            match event.event {
                EVENT_GC => self.gc_cycles += 1,
                EVENT_EXEC => self.exec = true,
                EVENT_FORK | EVENT_CHILD_EXEC => self.processes.take(&event),
                _ => {
                    self.code_mapped |= event.event == EVENT_MMAP && event.flags & MAPPED_CODE != 0;
                    if self.following.vm {
                        self.address_space_event(&event);
                    }
                }
            }
        }
        self.take_samples();
    }

    /// Whether objects wait for a look: a collection has finished, or the last look came before all
    /// spans had been swept.
    pub fn wants_look(&self) -> bool {
        match &self.go {
            GoHeap::Refill(sampler) => self.looked_at != self.gc_cycles || sampler.is_waiting(),
            _ => false,
        }
    }

    /// Looks which of our own samples still live.
    pub fn look_at_objects(&mut self) {
        let GoHeap::Refill(sampler) = &mut self.go else {
            return;
        };
        self.looked_at = self.gc_cycles;
        for dead in sampler.look(&mut self.losses) {
            died(&mut self.deltas, dead);
        }
    }

    fn take_samples(&mut self) {
        let GoHeap::Refill(sampler) = &mut self.go else {
            return;
        };
        let cohort = self.index.max(1);
        for _ in 0..self.kernel.ring_samples() {
            let Some(sample) = self.kernel.next_sample() else {
                break;
            };
            self.samples += 1;
            let site = self.sites.sampled(refill::site_of(&sample), &sample);
            let (born, dead) = sampler.take(&sample, site, cohort);
            if let Some(dead) = dead {
                died(&mut self.deltas, dead);
            }
            match born {
                Some(born) => {
                    let delta = delta_of(&mut self.deltas, born.site);
                    delta.allocs += 1;
                    delta.alloc_bytes += born.bytes;
                    delta.repeats += u64::from(sampler.repeats(&sample, born.site));
                }
                None => *self.losses.entry(loss::GO_OBJECTS_UNFOLLOWED).or_default() += 1,
            }
        }
    }

    /// Whether the target has mapped code of a file since the last call.
    pub fn code_was_mapped(&mut self) -> bool {
        std::mem::take(&mut self.code_mapped)
    }

    /// What is of these kinds is not followed any more after the interval that is under way.
    pub fn end(&mut self, kinds: &[schema::Kind]) {
        self.following.end(kinds);
    }

    /// Whether the target has become another program.
    pub fn target_called_exec(&self) -> bool {
        self.exec
    }

    /// Records taken out of the ring buffer since the attach.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The sampled heap objects that are alive now, of those that the runtime has
    /// sampled since the attach.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn live_samples(&self) -> Result<Vec<LiveSample>, LoadError> {
        let sampler = match &self.go {
            GoHeap::Unsampled => return Ok(Vec::new()),
            GoHeap::Refill(sampler) => return Ok(sampler.live()),
            GoHeap::Runtime(sampler) => live_heap::Sampler::Runtime {
                rate: sampler.rate(),
            },
        };
        let mut samples = Vec::new();
        self.kernel.for_each_live(|address, object| {
            if object.kind != KIND_GO_HEAP {
                return;
            }
            samples.push(LiveSample {
                address,
                size: object.size,
                weight_bytes: object.size as f64 * sampler.scale(object.size),
                own_site: None,
            });
        })?;
        Ok(samples)
    }

    /// Goroutines made and ended since the attach, by the return address of their go statement.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn creations(&self) -> Result<BTreeMap<u64, SiteCounters>, LoadError> {
        let totals = self.kernel.totals(KIND_GOROUTINE)?;
        Ok(totals
            .into_iter()
            .map(|(site, n)| (site.stack.0, n))
            .collect())
    }

    /// The steps in which blocks of native allocators were sampled more coarsely.
    pub fn coarsened(&self) -> &[Coarsened] {
        &self.coarsened.taken
    }

    /// Losses since the attach, by cause.
    pub fn losses(&self) -> Vec<schema::Loss> {
        losses(&self.losses)
    }

    /// Ends the current interval at `t_ns` since the window opened, and starts the next. The
    /// first call, with index 0, describes the state at the attach. Mappings and memory are the
    /// caller's to add.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn interval(&mut self, t_ns: u64) -> Result<schema::Interval, LoadError> {
        self.take_events();
        let before = self.losses.clone();
        let go_buckets = self.objects()?;
        self.coarsened.look(&self.kernel, t_ns)?;
        self.look_at_objects();
        let (go_classes, go_own_sampling) = self.own_counts();
        for (cause, count) in loss::KERNEL.into_iter().zip(self.kernel.losses()?) {
            if count > 0 {
                self.losses.insert(cause, count);
            }
        }
        if self.space.untracked() > 0 {
            self.losses
                .insert(loss::MAPPINGS_UNTRACKED, self.space.untracked());
        }
        for (cause, count) in self.blocks.iter().flat_map(Blocks::losses) {
            if count > 0 {
                self.losses.insert(cause, count);
            }
        }
        let changed = self
            .losses
            .iter()
            .filter(|(cause, count)| before.get(*cause) != Some(count))
            .map(|(cause, count)| (*cause, *count))
            .collect();
        // What is mapped while the state at the attach is read counts to the first interval.
        let deltas = match self.index {
            0 => Vec::new(),
            _ => std::mem::take(&mut self.deltas).into_values().collect(),
        };
        let interval = schema::Interval {
            index: self.index,
            t_ns,
            sites: self.sites.take_fresh(),
            deltas,
            go_buckets,
            go_sample_rate: match &self.go {
                GoHeap::Runtime(sampler) => sampler.rate(),
                _ => 0,
            },
            go_classes,
            go_own_sampling,
            windows: self.blocks.as_mut().map(Blocks::take),
            malloc_calls: match self.following.malloc {
                true => Some(self.kernel.malloc_calls()?),
                false => None,
            },
            gc_cycles: self.gc_cycles,
            losses: losses(&changed),
            ended: self.following.take_ended(),
            ..schema::Interval::default()
        };
        self.index += 1;
        Ok(interval)
    }

    fn address_space_event(&mut self, event: &VmEvent) {
        let Self {
            kernel,
            space,
            sites,
            deltas,
            losses,
            index,
            ..
        } = self;
        // What is mapped while the state at the attach is being read is born in the first interval.
        space.set_cohort((*index).max(1));
        space.apply(event, &mut |change| match change {
            Change::Alloc {
                stack,
                kind,
                objects,
                bytes,
            } => {
                let site = SiteKey {
                    stack,
                    kind,
                    class: 0,
                };
                let delta = delta_of(deltas, sites.walked(site, kernel));
                delta.allocs += objects;
                delta.alloc_bytes += bytes;
            }
            Change::Free { cohort: 0, .. } => {
                *losses.entry(loss::UNMAP_OF_PREEXISTING).or_default() += 1;
            }
            Change::Free {
                stack,
                kind,
                objects,
                bytes,
                cohort,
            } => {
                let site = SiteKey {
                    stack,
                    kind,
                    class: 0,
                };
                let delta = delta_of(deltas, sites.walked(site, kernel));
                delta.frees += objects;
                delta.free_bytes += bytes;
                add_freed(&mut delta.freed, cohort, objects, bytes);
            }
        });
    }

    /// The turnover of the objects that the kernel side follows, and the Go profile's buckets whose
    /// counts changed. The totals and then the live set are read before the profile, so that every
    /// bucket they name is known by then.
    fn objects(&mut self) -> Result<Vec<schema::GoBucket>, LoadError> {
        let is_sampled = matches!(self.go, GoHeap::Runtime(_));
        if !self.following.malloc && !is_sampled {
            return Ok(Vec::new());
        }
        let mut sites = HashMap::new();
        if self.following.malloc {
            sites = self.kernel.totals(KIND_MALLOC)?;
            self.processes.add_ended(&mut sites);
        }
        let mut of_go = HashMap::new();
        if is_sampled {
            of_go = self.kernel.totals(KIND_GO_HEAP)?;
        }
        let now = Ktime(monotonic_ns());
        sites.extend(of_go.iter().map(|(site, totals)| (*site, *totals)));
        let cohort = self.index.max(1);
        let turnovers = self
            .objects
            .look(cohort, now, sites, |visit| self.kernel.for_each_live(visit))?;
        let buckets = self.go_profile(&of_go)?;
        self.turnover(turnovers);
        Ok(buckets)
    }

    /// The buckets of Go's profile that changed. `totals` were read before.
    fn go_profile(
        &mut self,
        totals: &HashMap<SiteKey, SiteCounters>,
    ) -> Result<Vec<schema::GoBucket>, LoadError> {
        let GoHeap::Runtime(sampler) = &mut self.go else {
            return Ok(Vec::new());
        };
        let before = births(totals);
        let reading = sampler.read();
        let buckets = match reading {
            Ok(changed) => changed
                .into_iter()
                .map(|(bucket, counts)| schema::GoBucket {
                    site: self.sites.bucket(bucket),
                    allocs: counts.allocs,
                    frees: counts.frees,
                    proven_allocs: counts.proven_allocs,
                    proven_frees: counts.proven_frees,
                })
                .collect(),
            // The target has ended, most likely: what the probes counted is all there is.
            Err(_) => {
                *self.losses.entry(loss::GO_PROFILE_UNREADABLE).or_default() += 1;
                Vec::new()
            }
        };
        let after = || self.kernel.totals(KIND_GO_HEAP).map(|of_go| births(&of_go));
        match sampler.unseen(before, after)? {
            0 => {}
            unseen => {
                self.losses.insert(loss::GO_SAMPLES_UNSEEN, unseen);
            }
        }
        Ok(buckets)
    }

    /// Adds what has become of the objects since the last interval to the deltas.
    fn turnover(&mut self, turnovers: BTreeMap<SiteKey, Turnover>) {
        for (site, turnover) in turnovers {
            let Turnover { counters, freed } = turnover;
            let id = match site.kind {
                // All of this is in the profile's state at the attach.
                KIND_GO_HEAP if self.index == 0 => continue,
                KIND_GO_HEAP => self.sites.of_bucket(site.stack),
                _ => self.sites.walked(site, &self.kernel),
            };
            let delta = delta_of(&mut self.deltas, id);
            delta.allocs += counters.allocs;
            delta.alloc_bytes += counters.alloc_bytes;
            delta.frees += counters.frees;
            delta.free_bytes += counters.free_bytes;
            for each in freed {
                add_freed(&mut delta.freed, each.cohort, each.objects, each.bytes);
            }
        }
    }
}

fn births(totals: &HashMap<SiteKey, SiteCounters>) -> u64 {
    totals.values().map(|counters| counters.allocs).sum()
}

fn losses(counts: &BTreeMap<&'static str, u64>) -> Vec<schema::Loss> {
    counts
        .iter()
        .map(|(cause, count)| schema::Loss {
            cause: (*cause).to_owned(),
            count: *count,
        })
        .collect()
}
