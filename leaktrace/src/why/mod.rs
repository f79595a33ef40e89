//! `leaktrace why`: the paths that keep a Go process's objects alive, from one look at its memory. The
//! process is neither stopped nor written to.

mod groups;
mod hops;
mod search;
mod shapes;
mod sites;

use anyhow::{Context as _, Result};

use crate::{
    goroutines::Code,
    inventory::{
        goroutines::Goroutines,
        heap::{Heap, Root, Roots, TooLarge, Types, samples},
    },
    live_heap::Sampler,
    privileges::{self, Phase},
    report::{
        LimitReport,
        why::{Amount, Pass, SCHEMA, Why, WhySite, WhyTarget},
    },
    stop_signals::{StopSignals, watched},
    target::{Target, TargetError},
};
use groups::Groups;
use hops::Hops;
use search::{Asked, Search};
use shapes::Tally;
use sites::{Site, Sites};

pub use crate::inventory::Watch;

/// What to explain.
#[derive(Clone, Debug, PartialEq)]
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
    /// Sites of a recording.
    Recorded(Vec<Wanted>),
}

/// A site of a recording, and how its objects are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Its numbers in the capture.
    pub capture_sites: Vec<u32>,
    /// The stacks of its buckets in the runtime's heap profile, innermost first.
    pub stacks: Vec<Vec<u64>>,
    /// Addresses of its objects that leaktrace has sampled itself, with the bytes that each stands for.
    pub objects: Vec<(u64, f64)>,
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
    /// Most that the search may cost the process, as a share of its throughput; `None`: it goes as fast as it can.
    pub max_overhead: Option<f64>,
    /// When the process must have started (field 22 of /proc/PID/stat); another one of the same id is not
    /// looked at.
    pub start_ticks: Option<u64>,
    /// Bytes for each sample of the runtime's heap sampler, where it may have been switched off since.
    pub sample_rate: Option<u64>,
}

/// Looks at a process. SIGINT and its like end the search early; what was found by then is told. `progress`
/// is called ten times a second.
///
/// # Errors
///
/// The process cannot be looked at, is not a Go program whose layout is known, or its heap is too
/// large for the memory allowed.
pub fn why(options: &Options, progress: impl FnMut(&Watch)) -> Result<Why> {
    privileges::keep(Phase::Look);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    let options = options.clone();
    runtime.block_on(async {
        let mut signals = StopSignals::catch()?;
        let watch = Watch::within(options.max_overhead);
        watched(
            watch,
            move |watch| look(&options, watch),
            &mut signals,
            progress,
        )
        .await?
    })
}

fn look(options: &Options, watch: &Watch) -> Result<Why> {
    let pid = options.pid;
    let target = Target::open(pid)?;
    if options
        .start_ticks
        .is_some_and(|start| start != target.start_ticks)
    {
        return Err(TargetError::Gone { pid }.into());
    }
    let unsupported = |reason: String| TargetError::Unsupported { pid, reason };
    let go = target.go_program()?;
    let read_rate = || target.sample_rate(go).unwrap_or(0);
    let sample_rate = options.sample_rate.unwrap_or_else(read_rate);
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
    let buckets = sites::profile(&target, go, sample_rate).map_err(unsupported)?;
    let sampler = Sampler::Runtime { rate: sample_rate };
    let (asked, sites_total) = match choice {
        Choice::Address(address) => (Asked::Known(vec![sites::at(&heap, *address)?]), 0),
        Choice::Heap => (Asked::Known(vec![sites::whole(&heap)]), 0),
        Choice::Recorded(wanted) => {
            let sites = sites::recorded(wanted, &heap, &buckets, &of_bucket, sampler);
            (Asked::Known(sites), wanted.len())
        }
        Choice::Largest | Choice::Site(_) | Choice::Function(_) => {
            let sites = Sites::of(&heap, &buckets, &of_bucket, sampler, go);
            let total = sites.len();
            (Asked::Ranked(sites), total)
        }
    };

    let symbols = go.binary.data_symbols();
    let is_runtimes_own = |address| {
        let symbol = symbols.place(address).symbol;
        symbol.is_some_and(|symbol| symbol.starts_with("runtime."))
    };
    let roots = Roots::find(&heap, go, &goroutines, &census, is_runtimes_own)
        .with_context(|| format!("failed to find the roots of process {pid}"))?;
    let types = Types::find(&heap, go);
    let search = Search {
        heap: &heap,
        roots: &roots,
        types: types.as_ref(),
        options,
        symbolizer: &symbolizer,
        watch,
    };
    let found = search.run(asked)?;
    let figures = found.figures;
    let mut fates = found.fates.into_iter();
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
        let mut tally = Tally::new(&groups, &found.forgotten, &symbols, go.bias);
        for ((object, stands_for), fate) in site.samples.iter().zip(fates.by_ref()) {
            let bytes = heap.size(*object) as f64 * stands_for;
            tally.add(&fate, &hops, (*stands_for, bytes));
        }
        WhySite {
            rank: site.rank as u64,
            capture_sites: site.capture_sites.clone(),
            stack: site.stack.clone(),
            address: site.address,
            ..tally.report(&hops)
        }
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
        sites: found.sites.iter().map(&mut explain).collect(),
        sites_total: sites_total as u64,
        pass: Pass {
            spans: heap.spans().len() as u64,
            heap_bytes,
            scanned_bytes: figures.scanned_bytes,
            unread_bytes: figures.unread_bytes,
            reached_objects: figures.reached,
            roots_dropped: figures.roots_dropped,
            passes: found.searches,
            backward_scans: figures.backward_scans,
            stopped: figures.is_cut,
            table_bytes: figures.memory_bytes,
            took_ms: figures.took.as_secs_f64() * 1000.0,
        },
        limits: limits(&roots),
    })
}

fn limits(roots: &Roots<'_>) -> Vec<LimitReport> {
    let limits = roots.limits().into_iter();
    limits
        .map(|(what, reason)| LimitReport { what, reason })
        .collect()
}

/// Not enough memory is allowed.
pub fn is_too_large(error: &anyhow::Error) -> bool {
    error.is::<TooLarge>()
}
