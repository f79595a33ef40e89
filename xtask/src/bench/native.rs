//! What following the blocks of a native allocator costs, all of them, samples or what windows show, beside
//! memleak and heaptrack.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{SETTLE, Tracer, peers::Peers, spread, throughput, under_leaktrace};
use crate::{run::find, service::Service, targets, workspace};

/// What a case has in its name.
pub(super) const NAME: &str = "native, malloc and free";

/// One way to follow the program, and the pairs of malloc and free a second of each turn.
struct Way {
    name: &'static str,
    rates: Vec<f64>,
    /// The same over the program alone, in the same turn.
    ratios: Vec<f64>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            rates: Vec::new(),
            ratios: Vec::new(),
        }
    }

    fn add(&mut self, rate: f64, alone: f64) {
        self.rates.push(rate);
        self.ratios.push(rate / alone);
    }
}

/// Measures `turns` times, `window` each, and prints the table.
///
/// # Errors
///
/// When a tool cannot be had or attached, or the program ends.
pub(super) fn measure(turns: u32, window: Duration) -> Result<()> {
    let peers = Peers::find()?;
    targets::build_native_program("pairs")?;
    let program = workspace::targets().join("pairs");
    let mut all = Way::new("leaktrace, every block");
    let mut sampled = Way::new("leaktrace, one in 512 KiB");
    let mut in_windows = Way::new("leaktrace, --max-overhead 3");
    let mut memleak = Way::new("memleak, every block");
    let mut heaptrack = Way::new("heaptrack, started with it");
    let mut untraced = Vec::new();
    for turn in 1..=turns {
        // One process for those that attach; it must not run beside the one that heaptrack starts.
        let service = Service::start(&program, &[])?;
        thread::sleep(SETTLE);
        let before = throughput(&service, window)?;
        let leaktrace = |options: &[&str]| {
            let options = [&["--probe", "malloc"][..], options].concat();
            under_leaktrace(&service, window, &options)
        };
        let under_all = leaktrace(&["--sample", "all", "--force"])?;
        thread::sleep(SETTLE);
        let under_memleak = under_memleak(&service, &peers, window)?;
        thread::sleep(SETTLE);
        let under_sampled = leaktrace(&["--sample", "512KiB", "--force"])?;
        thread::sleep(SETTLE);
        let middle = throughput(&service, window)?;
        let under_windows = leaktrace(&["--max-overhead", "3"])?;
        thread::sleep(SETTLE);
        let after = throughput(&service, window)?;
        drop(service);
        let under_heaptrack = under_heaptrack(&program, window)?;
        let alone = (before + middle + after) / 3.0;
        untraced.extend([before, middle, after]);
        for (way, rate) in [
            (&mut all, under_all),
            (&mut sampled, under_sampled),
            (&mut memleak, under_memleak),
            (&mut heaptrack, under_heaptrack),
        ] {
            way.add(rate, alone);
        }
        // What they are held against is what is before and after them, close by.
        in_windows.add(under_windows, f64::midpoint(middle, after));
        println!(
            "{NAME} {turn:>3}: pairs/s, M: alone {:.2}, leaktrace {:.3}, memleak {:.4}, leaktrace sampling \
             {:.3}, alone {:.2}, leaktrace in windows {:.2}, alone {:.2}, heaptrack {:.3}",
            before / 1e6,
            under_all / 1e6,
            under_memleak / 1e6,
            under_sampled / 1e6,
            middle / 1e6,
            under_windows / 1e6,
            after / 1e6,
            under_heaptrack / 1e6,
        );
    }
    let over_memleak = |way: &Way| {
        let mut ratios: Vec<f64> = way
            .rates
            .iter()
            .zip(&memleak.rates)
            .map(|(a, b)| a / b)
            .collect();
        spread(&mut ratios, 1)
    };
    println!(
        "\n{NAME}: {:.1} M pairs/s alone; median (lowest to highest) of {turns} turns; {}",
        untraced.iter().sum::<f64>() / untraced.len().max(1) as f64 / 1e6,
        peers.versions
    );
    println!(
        "  {:<28} {:>26} {:>28} {:>24}",
        "", "M pairs/s", "against alone", "against memleak"
    );
    for way in [&all, &sampled, &in_windows, &memleak, &heaptrack] {
        let mut rates: Vec<f64> = way.rates.iter().map(|rate| rate / 1e6).collect();
        println!(
            "  {:<28} {:>26} {:>28} {:>24}",
            way.name,
            spread(&mut rates, 3),
            spread(&mut way.ratios.clone(), 4),
            over_memleak(way)
        );
    }
    Ok(())
}

fn under_memleak(service: &Service, peers: &Peers, window: Duration) -> Result<f64> {
    let mut tracer = Tracer::start(&mut peers.memleak(service.pid()))?;
    tracer.wait_until_attached()?;
    thread::sleep(SETTLE);
    let rate = throughput(service, window)?;
    tracer.stop()?;
    Ok(rate)
}

fn under_heaptrack(program: &Path, window: Duration) -> Result<f64> {
    let heaptrack = find("heaptrack").context("there is no heaptrack")?;
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    let file = folder.join("pairs.heaptrack");
    let [file, program] = [&file, program].map(|path| path.to_string_lossy().into_owned());
    let service = Service::start(&heaptrack, &["--output", &file, &program])?;
    thread::sleep(SETTLE);
    throughput(&service, window)
}
