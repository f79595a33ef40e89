//! What `leaktrace why` takes for heaps of three sizes, and what it costs the program meanwhile.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{SETTLE, means, rates, spread, throughput};
use crate::{bench::report::wait, go, run, run::as_root, service::Service, workspace};

/// What a case has in its name.
pub(super) const NAME: &str = "why of a large heap";

/// What is kept, in MiB, in objects of 96 bytes: 2.5, 10 and 20 million, and how. With what it allocates between two
/// collections the heap is up to twice as large.
const KEPT: [(u64, &str); 4] = [(229, TREE), (915, TREE), (1831, TREE), (1831, LIST)];
const TREE: &str = "tree";
/// Each object is known only when the one before has been read.
const LIST: &str = "list";

/// `--max-overhead`: as fast as it can, and the default.
const PACES: [&str; 2] = ["50", "3"];

/// How long the program takes to make the largest heap, at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks at a program that allocates beside its heap, `turns` times.
///
/// # Errors
///
/// When a command fails or the program ends.
pub(super) fn measure(turns: u32, window: Duration, workers: Option<u32>) -> Result<()> {
    println!(
        "\n{NAME}, objects of 96 bytes: whole command, s; peak memory, MiB; throughput meanwhile, and for each second \
         of the program's processor time"
    );
    for (heap, shape) in KEPT {
        let program = workspace::targets().join(format!("churn-{}", go::NEWEST.number));
        let (heap_text, workers) = (heap.to_string(), workers.unwrap_or(1).to_string());
        let mut arguments = vec![
            "-interval",
            "250ms",
            "-heap",
            &heap_text,
            "-workers",
            &workers,
        ];
        arguments.extend((shape == LIST).then_some("-list"));
        arguments.extend(super::SLOWER);
        let service = Service::start(&program, &arguments)?;
        wait_for(&service)?;
        for pace in PACES {
            let (mut seconds, mut ratios, mut peak) = (Vec::new(), [Vec::new(), Vec::new()], 0);
            for _ in 0..turns {
                let before = rates(&service, window)?;
                let (meanwhile, took, peak_bytes) = look(&service, pace)?;
                thread::sleep(SETTLE);
                let after = rates(&service, window)?;
                for (index, ratios) in ratios.iter_mut().enumerate() {
                    ratios.push(meanwhile[index] / f64::midpoint(before[index], after[index]));
                }
                seconds.push(took.as_secs_f64());
                peak = peak.max(peak_bytes >> 20);
            }
            println!(
                "  {heap:>5} MiB kept, {shape}, {:>4.1} M objects, --max-overhead {pace:>3} {:>22} {peak:>5} {:>24} {:>24}",
                heap as f64 * 1.048_576 / 96.0,
                spread(&mut seconds, 2),
                spread(&mut ratios[0], 3),
                spread(&mut ratios[1], 3)
            );
        }
    }
    Ok(())
}

/// Waits until the heap is there and the program prints its throughput.
fn wait_for(service: &Service) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if throughput(service, Duration::from_secs(1)).is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("the sample program did not make its heap within {PATIENCE:?}")
}

/// The program's rates while it is looked at, how long that took, and its most resident memory in bytes.
fn look(service: &Service, pace: &str) -> Result<([f64; 2], Duration, u64)> {
    let mut command: Command = as_root(workspace::leaktrace());
    command
        .args(["why", "-p", &service.pid().to_string(), "--format", "json"])
        .args(["--max-overhead", pace])
        .stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("failed to start `{}`", run::line(&command)))?;
    let ended = thread::spawn(move || {
        let waited = wait(&mut child);
        (waited, Instant::now())
    });
    let mut meanwhile = Vec::new();
    while !ended.is_finished() {
        meanwhile.extend(rates(service, Duration::from_millis(600)).ok());
    }
    let (waited, end) = ended
        .join()
        .ok()
        .context("failed to wait for `leaktrace why`")?;
    let (status, peak_bytes) = waited.context("failed to wait for `leaktrace why`")?;
    ensure!(
        status == 0,
        "`{}` failed: wait status {status:#x}",
        run::line(&command)
    );
    ensure!(
        !meanwhile.is_empty(),
        "the sample program said nothing meanwhile"
    );
    Ok((means(&meanwhile), end - start, peak_bytes))
}
