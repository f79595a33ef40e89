//! `cargo xtask vm`: leaktrace on the kernels of Debian's releases, from the oldest that it must refuse to the
//! newest, each booted under QEMU without hardware support.
//!
//! What is shipped, the static file, meets each kernel as it would on a host: the same tests as on this machine run
//! in the guest, as root, on the guest's kernel. A kernel that cannot be had fails the chore.

mod guest;
mod initramfs;
mod kernels;
mod table;
mod tests;

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Result, ensure};

use crate::{
    checks::Counts,
    setup::{self, Scope},
    targets, workspace,
};
use guest::Ran;
use kernels::{Kernel, Kernels};
use tests::List;

/// The kernels of Debian 11, 12 and 13, the newest with long support, and the newest of all.
const SERIES: [&str; 5] = [TOO_OLD, "6.1", "6.12", "6.18", "7.3"];
/// Besides, where no series is named: kernels that preempt their own code, where probes take seconds to go, and one
/// whose walk of a stack fails now and then.
const MORE: [&str; 3] = ["6.1-rt", "6.12-rt", "7.1"];
/// leaktrace refuses it.
const TOO_OLD: &str = "5.10";
/// As many guests at once, of one processor each.
const AT_ONCE: usize = 2;

/// Sets up, builds, and runs the newest kernel of each of `series`; if none is named, of all and some more, and
/// docs/kernel-features.md is written anew.
///
/// # Errors
///
/// When a step fails.
pub(crate) fn run(series: &[String]) -> Result<()> {
    setup::run(Scope::Test)?;
    crate::release::build()?;
    targets::build(Scope::Test)?;
    let mut counts = Counts::default();
    if !series.is_empty() {
        let series: Vec<_> = series.iter().map(String::as_str).collect();
        return boot_all(&series, &mut counts).map(drop);
    }
    let all = [&SERIES[..], &MORE[..]].concat();
    let ran = boot_all(&all, &mut counts)?;
    table::write(&ran)
}

/// The same with what is built, without writing.
///
/// # Errors
///
/// When a kernel cannot be had or a test fails.
pub(crate) fn check(counts: &mut Counts) -> Result<()> {
    boot_all(&SERIES, counts).map(drop)
}

fn say(what: &str) {
    eprintln!("vm: {what}");
}

/// What is run on a kernel of that series.
fn list(series: &str) -> &'static List {
    if series == TOO_OLD {
        &tests::OLD
    } else {
        &tests::ALL
    }
}

/// Boots the newest kernel of each series and says what came of it, in their order.
fn boot_all<'a>(series: &[&'a str], counts: &mut Counts) -> Result<Vec<(&'a str, Ran)>> {
    let folder = workspace::target().join("vm");
    fs::create_dir_all(&folder)?;
    let kernels = Kernels::look()?;
    let kernels = series.iter().map(|series| kernels.newest(series));
    // One after the other, before the first is booted.
    let kernels: VecDeque<_> = kernels.enumerate().collect();
    let initramfs = initramfs::make(&folder)?;
    let queue = Mutex::new(kernels);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                // In a closure, or it would stay locked while the guest runs. The newest, which takes longest, first.
                let next = || lock(&queue).pop_back();
                while let Some((at, kernel)) = next() {
                    let series = series[at];
                    let run = |kernel: Kernel| boot(series, &kernel, &initramfs, &folder);
                    let ran = kernel.and_then(|kernel| kernel.map(run).transpose());
                    lock(&results).push((at, series, ran));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, ..)| *at);

    let mut ran = Vec::new();
    let mut failed = 0;
    for (_, series, result) in results {
        match result {
            Ok(None) => say(&format!(
                "NOT TO BE HAD: Debian has no kernel of {series} any more"
            )),
            Ok(Some(guest)) => {
                say(&format!(
                    "ok      {}: {} tests passed, up after {:.1} s, {:.1} s",
                    guest.release,
                    guest.counts.passed,
                    guest.up.as_secs_f64(),
                    guest.all.as_secs_f64()
                ));
                counts.passed += guest.counts.passed;
                ran.push((series, guest));
            }
            Err(error) => {
                say(&format!("FAILED  {series}: {error:#}"));
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} kernels failed", series.len());
    ensure!(!ran.is_empty(), "no kernel was run");
    Ok(ran)
}

fn boot(series: &str, kernel: &Kernel, initramfs: &Path, folder: &Path) -> Result<Ran> {
    say(&format!("boots {}", kernel.release));
    let log = folder.join(format!("{}.log", kernel.release));
    guest::run(kernel, initramfs, list(series), &log)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
