//! Which objects are to be explained, by allocation site.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::{Result, bail};

use super::{Choice, Options, Wanted};
use crate::{
    go::GoVariable,
    inventory::{
        Bucket, Buckets,
        heap::{Heap, Object, Sample},
    },
    live_heap::Sampler,
    plan::GoSampler,
    report::Frame,
    symbolize::{PcKind, Symbolizer},
    target::{GoTarget, Target},
};

/// Samples of a site whose paths are looked for; of a larger one they stand for the rest.
const MAX_SAMPLES: usize = 5_000;
/// Objects taken of a whole heap.
const HEAP_SAMPLES: u64 = 4096;

/// Objects, and how many each stands for.
type Samples = Vec<(Object, f64)>;

/// An allocation site with its live samples.
pub(super) struct Site {
    pub(super) rank: usize,
    /// Its numbers in a capture.
    pub(super) capture_sites: Vec<u32>,
    pub(super) stack: Vec<Frame>,
    pub(super) samples: Samples,
    /// Address of the object that was asked for.
    pub(super) address: Option<u64>,
}

/// The process's own heap profile, by address of the bucket; empty when its sampler is off.
pub(super) fn profile(
    target: &Target,
    go: &GoTarget,
    sample_rate: u64,
) -> Result<HashMap<u64, Bucket>, String> {
    if sample_rate == 0 {
        return Ok(HashMap::new());
    }
    let sampler = GoSampler {
        buckets: go.address(GoVariable::MBuckets)?,
        rate: go.address(GoVariable::MemProfileRate)?,
        sample_rate,
        layout: go
            .binary
            .layout()
            .map_err(|error| error.to_string())?
            .clone(),
        bias: go.bias,
    };
    let mut buckets = Buckets::new(target.memory, sampler);
    buckets.read().map_err(|error| error.to_string())?;
    let each = buckets.buckets().iter();
    Ok(each
        .map(|bucket| (bucket.address, bucket.clone()))
        .collect())
}

/// The object at an address, as a site of its own.
pub(super) fn at(heap: &Heap, address: u64) -> Result<Site> {
    let Some(object) = heap.object_at(address) else {
        bail!("`{address:#x}` is not in an object of the Go heap");
    };
    Ok(Site {
        rank: 0,
        capture_sites: Vec::new(),
        stack: Vec::new(),
        samples: vec![(object, 1.0)],
        address: Some(heap.address(object)),
    })
}

/// Objects of the whole heap, at equal distances: the chance to be taken is proportional to the size.
pub(super) fn whole(heap: &Heap) -> Site {
    let (bytes, _) = heap.bytes();
    let step = (bytes / HEAP_SAMPLES).max(1);
    let mut samples = Samples::new();
    // From one span to the next as if they were in one piece.
    let mut at = step / 2;
    for span in heap.spans() {
        while at < span.bytes {
            let object = heap.object_at(span.start + at);
            let taken = samples.last().map(|(last, _)| *last);
            if let Some(object) = object.filter(|object| taken != Some(*object)) {
                samples.push((object, (step as f64 / heap.size(object) as f64).max(1.0)));
            }
            at += step;
        }
        at -= span.bytes;
    }
    // Many places have no object.
    let objects: Vec<Object> = samples.iter().map(|(object, _)| *object).collect();
    let empty = heap.empty(&objects);
    samples.retain(|(object, _)| !empty.contains(object));
    Site {
        rank: 0,
        capture_sites: Vec::new(),
        stack: Vec::new(),
        samples,
        address: None,
    }
}

/// The stack from the innermost function outside the runtime on: by which of its functions the runtime
/// allocates is chance. One that is the runtime's own stays whole.
fn own_stack<'a>(go: &GoTarget, pcs: &'a [u64], of_runtime: &mut HashMap<u64, bool>) -> &'a [u64] {
    let mut is_runtimes = |pc: &u64| {
        *of_runtime.entry(*pc).or_insert_with(|| {
            let frames = go.binary.frames(pc.wrapping_sub(go.bias), PcKind::Logical);
            let name = frames.first().and_then(|frame| frame.function.as_deref());
            name.is_some_and(|name| name.starts_with("runtime."))
        })
    };
    match pcs.iter().take_while(|pc| is_runtimes(pc)).count() {
        all if all == pcs.len() => pcs,
        inside => &pcs[inside..],
    }
}

/// Whether a slot of that size can hold an object of this one: no more than a page larger than what was asked for or
/// than twice as much. Otherwise the object has died since its sample was read, and its span serves others.
fn may_be(object_size: u64, slot: u64) -> bool {
    const PAGE: u64 = 8192;
    (object_size..=object_size.saturating_mul(2).saturating_add(PAGE)).contains(&slot)
}

/// All sites with live samples, of which some will be explained. Buckets of one stack outside the runtime are one
/// site.
pub(super) struct Sites<'a> {
    by_stack: Vec<(&'a [u64], Samples)>,
}

impl<'a> Sites<'a> {
    pub(super) fn of(
        heap: &Heap,
        buckets: &'a HashMap<u64, Bucket>,
        samples: &[Sample],
        sampler: Sampler,
        go: &GoTarget,
    ) -> Self {
        let mut of_runtime = HashMap::new();
        let mut by_stack: HashMap<&[u64], Samples> = HashMap::new();
        for sample in samples {
            if let Some(bucket) = buckets.get(&sample.bucket)
                && let Some(object) = heap.object_at(sample.address)
                && may_be(bucket.object_size, heap.size(object))
            {
                let stands_for = sampler.scale(bucket.object_size);
                by_stack
                    .entry(own_stack(go, &bucket.pcs, &mut of_runtime))
                    .or_default()
                    .push((object, stands_for));
            }
        }
        Self {
            by_stack: by_stack.into_iter().collect(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_stack.len()
    }

    /// The objects of all of them.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let samples = self.by_stack.iter().flat_map(|(_, samples)| samples);
        samples.map(|(object, _)| *object)
    }

    /// Those asked for, of which the most bytes are alive: that `is_held` tells of an object. What only waits to be
    /// collected is the last that anybody wants to be told.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn choose(
        mut self,
        options: &Options,
        heap: &Heap,
        symbolizer: &Symbolizer<'_>,
        is_held: impl Fn(Object) -> bool,
    ) -> Result<Vec<Site>> {
        let bytes = |samples: &[(Object, f64)], held: bool| -> u64 {
            let counted = samples
                .iter()
                .filter(|(object, _)| !held || is_held(*object));
            let each = counted.map(|(object, n)| heap.size(*object) as f64 * n);
            each.sum::<f64>() as u64
        };
        self.by_stack.sort_by_cached_key(|(pcs, samples)| {
            (
                Reverse(bytes(samples, true)),
                Reverse(bytes(samples, false)),
                pcs.to_vec(),
            )
        });
        let total = self.len();
        let stack = |pcs: &[u64]| -> Vec<Frame> {
            let addresses: Vec<_> = pcs.iter().map(|pc| (*pc, PcKind::Logical)).collect();
            let named = symbolizer.symbolize(&addresses).into_iter().zip(pcs);
            named
                .flat_map(|(frames, pc)| frames.into_iter().map(|frame| Frame::at(*pc, frame)))
                .collect()
        };
        let mut ranked = self.by_stack.into_iter().enumerate();
        let site = |(index, (pcs, samples))| Site::new(index, stack(pcs), samples);
        match &options.choice {
            Choice::Site(rank) => match ranked.nth(rank.saturating_sub(1)) {
                Some(ranked) => Ok(vec![site(ranked)]),
                None => bail!("there is no site {rank}: {total} have live samples"),
            },
            Choice::Function(pattern) => {
                let is_in = |frame: &Frame| {
                    let function = frame.function.as_deref();
                    function.is_some_and(|function| function.contains(pattern.as_str()))
                };
                let sites = ranked.map(site);
                let named = sites.filter(|site| site.stack.iter().any(is_in));
                let found: Vec<Site> = named.take(options.sites).collect();
                if found.is_empty() {
                    bail!(
                        "no function of the {total} sites with live samples has `{pattern}` in its name"
                    );
                }
                Ok(found)
            }
            _ => Ok(ranked.take(options.sites).map(site).collect()),
        }
    }
}

/// The sites of a recording with those of their objects that are alive: by the buckets of the runtime's
/// heap profile, or those that leaktrace has sampled itself.
pub(super) fn recorded(
    wanted: &[Wanted],
    heap: &Heap,
    buckets: &HashMap<u64, Bucket>,
    samples: &[Sample],
    sampler: Sampler,
) -> Vec<Site> {
    let stacks = wanted.iter().enumerate().flat_map(|(index, wanted)| {
        let stacks = wanted.stacks.iter();
        stacks.map(move |pcs| (pcs.as_slice(), index))
    });
    let by_stack: HashMap<&[u64], usize> = stacks.collect();
    let mut found: Vec<Samples> = wanted
        .iter()
        .map(|wanted| {
            let own = wanted.objects.iter().filter_map(|(address, bytes)| {
                let object = heap.object_at(*address)?;
                Some((object, bytes / heap.size(object) as f64))
            });
            own.collect()
        })
        .collect();
    for sample in samples {
        if let Some(bucket) = buckets.get(&sample.bucket)
            && let Some(index) = by_stack.get(bucket.pcs.as_slice())
            && let Some(object) = heap.object_at(sample.address)
        {
            found[*index].push((object, sampler.scale(bucket.object_size)));
        }
    }
    let each = wanted.iter().zip(found).enumerate();
    each.map(|(index, (wanted, samples))| Site {
        capture_sites: wanted.capture_sites.clone(),
        ..Site::new(index, Vec::new(), samples)
    })
    .collect()
}

impl Site {
    fn new(index: usize, stack: Vec<Frame>, mut samples: Samples) -> Self {
        if samples.len() > MAX_SAMPLES {
            // Evenly over the heap.
            samples.sort_unstable_by_key(|(object, _)| *object);
            let all: f64 = samples.iter().map(|(_, n)| n).sum();
            let step = samples.len().div_ceil(MAX_SAMPLES);
            samples = samples.into_iter().step_by(step).collect();
            let kept: f64 = samples.iter().map(|(_, n)| n).sum();
            samples.iter_mut().for_each(|(_, n)| *n *= all / kept);
        }
        Self {
            rank: index + 1,
            capture_sites: Vec::new(),
            stack,
            samples,
            address: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::may_be;

    #[test]
    fn a_slot_that_serves_others_is_told() {
        for (object, slot) in [(1, 8), (48, 48), (4097, 4864), (40_000, 40_960), (300, 320)] {
            assert!(may_be(object, slot), "{object} in {slot}");
        }
        for (object, slot) in [(48, 32), (64, 1 << 20), (300, 288)] {
            assert!(!may_be(object, slot), "{object} in {slot}");
        }
    }
}
