//! `leaktrace why`: the paths that keep a Go process's objects alive, from one look at its memory. The
//! process is neither stopped nor written to.

mod groups;
mod hops;
mod shapes;

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    go::GoVariable,
    goroutines::Code,
    inventory::{
        Bucket, Buckets,
        goroutines::Goroutines,
        heap::{Fate, Heap, Mark, MarkError, Object, Paths, Root, Roots, Sample, Types, samples},
    },
    live_heap::Sampler,
    plan::GoSampler,
    report::{
        Frame, LimitReport,
        why::{Amount, Pass, SCHEMA, Why, WhySite, WhyTarget},
    },
    symbolize::{PcKind, Symbolizer},
    target::{GoTarget, Target, TargetError},
};
use groups::Groups;
use hops::Hops;
use shapes::Tally;

/// Samples of a site whose paths are looked for; of a larger one they stand for the rest.
const MAX_SAMPLES: usize = 5_000;

/// Objects taken of a whole heap.
const HEAP_SAMPLES: u64 = 4096;
/// Passes at most: one more each time that of a site more than one path in a hundred does not
/// hold.
const MAX_PASSES: u64 = 5;

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The sites with the most live bytes.
    Largest,
    /// The site of this rank by live bytes, from 1.
    Site(usize),
    /// The sites in whose stack a function has this in its name.
    Function(String),
    /// The object in which this address lies.
    Address(u64),
    /// The whole heap, by a selection of its objects.
    Heap,
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The process.
    pub pid: i32,
    /// What to explain.
    pub choice: Choice,
    /// Sites to explain at most.
    pub sites: usize,
    /// Bytes of memory that the tables may take.
    pub max_memory: u64,
}

/// An allocation site with its live samples.
struct Site {
    rank: usize,
    stack: Vec<Frame>,
    /// The object, and how many objects it stands for.
    samples: Vec<(Object, f64)>,
    /// Address of the object that was asked for.
    address: Option<u64>,
}

/// Looks at a process.
///
/// # Errors
///
/// The process cannot be looked at, is not a Go program whose layout is known, or its heap is too
/// large for the memory allowed.
pub fn why(options: &Options) -> Result<Why> {
    let pid = options.pid;
    let target = Target::open(pid)?;
    let unsupported = |reason: String| TargetError::Unsupported { pid, reason };
    let go = target.go_program()?;
    let sample_rate = target.sample_rate(go).unwrap_or(0);
    let is_off = sample_rate == 0;
    let choice = match &options.choice {
        Choice::Site(_) | Choice::Function(_) if is_off => {
            let reason = "its heap sampler is off, so nothing says which objects are of which site; \
                          give an object by --address, or take the whole --heap";
            return Err(unsupported(reason.to_owned()).into());
        }
        Choice::Largest if is_off => &Choice::Heap,
        choice => choice,
    };
    let goroutines = Goroutines::new(target.memory, go).map_err(unsupported)?;
    let census = goroutines.census()?;
    let heap = Heap::read(target.memory, go)
        .with_context(|| format!("failed to read the heap of process {pid}"))?;
    let code = Code::of(&target)?;
    let symbolizer = code.symbolizer();
    let of_bucket = samples(&heap);
    let buckets = profile(&target, go, sample_rate).map_err(unsupported)?;
    let (sites, sites_total) = match choice {
        Choice::Address(address) => (vec![at(&heap, *address)?], 0),
        Choice::Heap => (vec![whole(&heap)], 0),
        _ => {
            let sampler = Sampler::Runtime { rate: sample_rate };
            choose(
                options,
                &heap,
                &buckets,
                &of_bucket,
                sampler,
                go,
                &symbolizer,
            )?
        }
    };

    let symbols = go.binary.data_symbols();
    let is_runtimes_own = |address| {
        let symbol = symbols.place(address).symbol;
        symbol.is_some_and(|symbol| symbol.starts_with("runtime."))
    };
    let roots = Roots::find(&heap, go, &goroutines, &census, is_runtimes_own)
        .with_context(|| format!("failed to find the roots of process {pid}"))?;
    let targets = || {
        sites
            .iter()
            .flat_map(|site| site.samples.iter().map(|(object, _)| *object))
    };
    let types = Types::find(&heap, go);
    let mut not = HashSet::new();
    let mut passes = 0;
    let (figures, mut fates) = loop {
        let marked = Mark::new(&heap, targets(), &not, options.max_memory)?.run(&roots);
        let memory = options.max_memory.saturating_sub(Mark::needed(&heap));
        let mut paths = Paths::check(&marked, &roots, types.as_ref(), targets(), memory);
        let fates: Vec<Fate> = targets().map(|object| paths.fate(object)).collect();
        let not_there: Vec<_> = paths.not_there().collect();
        let figures = marked.figures;
        passes += 1;
        drop(marked);
        let mut rest = &fates[..];
        let is_told = |site: &Site| {
            let (of_site, others) = rest.split_at(site.samples.len());
            rest = others;
            let moved = of_site.iter().filter(|fate| **fate == Fate::Moved).count();
            moved * 100 <= of_site.len()
        };
        if passes == MAX_PASSES || sites.iter().all(is_told) {
            break (figures, fates.into_iter());
        }
        // Another path may hold: it is looked for without the references that did not.
        not.extend(not_there);
    };
    let groups = Groups::name(&goroutines, &census, &symbolizer);
    let hops = Hops::new(
        &heap,
        go,
        types.as_ref(),
        &census,
        &roots,
        &buckets,
        &of_bucket,
        &symbolizer,
    );
    let mut explain = |site: &Site| {
        let mut tally = Tally::new(&groups, &symbols, go.bias);
        for ((object, stands_for), fate) in site.samples.iter().zip(fates.by_ref()) {
            let bytes = heap.size(*object) as f64 * stands_for;
            tally.add(&fate, &hops, (*stands_for, bytes));
        }
        tally.report(site.rank, site.stack.clone(), site.address, &hops)
    };
    let (heap_bytes, _) = heap.bytes();
    Ok(Why {
        schema: SCHEMA,
        target: WhyTarget {
            pid,
            comm: target.comm.clone(),
            exe: target.exe.clone(),
            runtime: go.binary.version().text.clone(),
            stripped: go.binary.stripped(),
            sample_rate,
        },
        sites: sites.iter().map(&mut explain).collect(),
        sites_total: sites_total as u64,
        pass: Pass {
            spans: heap.spans().len() as u64,
            heap_bytes,
            scanned_bytes: figures.scanned_bytes,
            unread_bytes: figures.unread_bytes,
            reached_objects: figures.reached,
            roots_dropped: figures.roots_dropped,
            passes,
            table_bytes: Mark::needed(&heap),
            took_ms: figures.took.as_secs_f64() * 1000.0,
        },
        limits: limits(&roots),
    })
}

fn limits(roots: &Roots<'_>) -> Vec<LimitReport> {
    let limits = roots.limits.iter();
    limits
        .map(|(what, reason)| LimitReport {
            what: what.clone(),
            reason: reason.clone(),
        })
        .collect()
}

/// The process's own heap profile, by address of the bucket; empty when its sampler is off.
fn profile(
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
fn at(heap: &Heap, address: u64) -> Result<Site> {
    let Some(object) = heap.object_at(address) else {
        bail!("`{address:#x}` is not in an object of the Go heap");
    };
    Ok(Site {
        rank: 0,
        stack: Vec::new(),
        samples: vec![(object, 1.0)],
        address: Some(heap.address(object)),
    })
}

/// Objects of the whole heap, at equal distances: the chance to be taken is proportional to the size.
fn whole(heap: &Heap) -> Site {
    let (bytes, _) = heap.bytes();
    let step = (bytes / HEAP_SAMPLES).max(1);
    let mut samples: Vec<(Object, f64)> = Vec::new();
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
    let empty = heap.empty(&samples.iter().map(|(object, _)| *object).collect());
    samples.retain(|(object, _)| !empty.contains(object));
    Site {
        rank: 0,
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

/// The sites asked for, and how many there are in all. Buckets of one stack outside the runtime are
/// one site.
fn choose(
    options: &Options,
    heap: &Heap,
    buckets: &HashMap<u64, Bucket>,
    samples: &[Sample],
    sampler: Sampler,
    go: &GoTarget,
    symbolizer: &Symbolizer<'_>,
) -> Result<(Vec<Site>, usize)> {
    let mut of_runtime = HashMap::new();
    let mut by_stack: HashMap<&[u64], Vec<(Object, f64)>> = HashMap::new();
    for sample in samples {
        if let Some(bucket) = buckets.get(&sample.bucket)
            && let Some(object) = heap.object_at(sample.address)
        {
            let stands_for = sampler.scale(bucket.object_size);
            by_stack
                .entry(own_stack(go, &bucket.pcs, &mut of_runtime))
                .or_default()
                .push((object, stands_for));
        }
    }
    let bytes = |samples: &[(Object, f64)]| -> u64 {
        let each = samples
            .iter()
            .map(|(object, n)| heap.size(*object) as f64 * n);
        each.sum::<f64>() as u64
    };
    let mut ranked: Vec<_> = by_stack.into_iter().collect();
    ranked.sort_by_key(|(pcs, samples)| (Reverse(bytes(samples)), pcs.to_vec()));
    let total = ranked.len();
    let wanted: Vec<(usize, _)> = ranked.into_iter().enumerate().collect();
    let stack = |pcs: &[u64]| -> Vec<Frame> {
        let addresses: Vec<_> = pcs.iter().map(|pc| (*pc, PcKind::Logical)).collect();
        let named = symbolizer.symbolize(&addresses).into_iter().zip(pcs);
        named
            .flat_map(|(frames, pc)| frames.into_iter().map(|frame| Frame::at(*pc, frame)))
            .collect()
    };
    let mut sites = Vec::new();
    match &options.choice {
        Choice::Site(rank) => {
            let site = wanted.into_iter().nth(rank.saturating_sub(1));
            let Some((index, (pcs, samples))) = site else {
                bail!("there is no site {rank}: {total} have live samples");
            };
            sites.push(Site::new(index, stack(pcs), samples));
        }
        Choice::Function(pattern) => {
            let is_in = |frame: &Frame| {
                let function = frame.function.as_deref();
                function.is_some_and(|function| function.contains(pattern.as_str()))
            };
            for (index, (pcs, samples)) in wanted {
                let stack = stack(pcs);
                if stack.iter().any(is_in) {
                    sites.push(Site::new(index, stack, samples));
                }
                if sites.len() == options.sites {
                    break;
                }
            }
            if sites.is_empty() {
                bail!(
                    "no function of the {total} sites with live samples has `{pattern}` in its name"
                );
            }
        }
        Choice::Largest | Choice::Address(_) | Choice::Heap => {
            for (index, (pcs, samples)) in wanted.into_iter().take(options.sites) {
                sites.push(Site::new(index, stack(pcs), samples));
            }
        }
    }
    Ok((sites, total))
}

impl Site {
    fn new(index: usize, stack: Vec<Frame>, mut samples: Vec<(Object, f64)>) -> Self {
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
            stack,
            samples,
            address: None,
        }
    }
}

/// Not enough memory is allowed.
pub fn is_too_large(error: &anyhow::Error) -> bool {
    error.is::<MarkError>()
}
