//! What `leaktrace report` takes for the capture of an hour of a large service.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{run, workspace};

/// What a case has in its name.
pub(super) const NAME: &str = "report of an hour";

/// How often the n-th of 5,000 sites allocates: with a chance of this over n in each interval. The first
/// is a busy service: some 700 sites in each interval. In the second every site does in every interval,
/// which no service comes near.
const ACTIVITIES: [(&str, &str); 2] = [("700 sites an interval", "150"), ("all sites", "1e9")];

/// Writes the captures and lets the built command read each `turns` times.
///
/// # Errors
///
/// When building or a command fails.
pub(super) fn measure(turns: u32) -> Result<()> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    println!("\n{NAME}, 5,000 sites, 1,000 intervals                  seconds   peak memory, MiB");
    for (name, activity) in ACTIVITIES {
        let file = folder.join("large.leaktrace");
        let mut cargo = Command::new(workspace::cargo());
        cargo
            .current_dir(workspace::root())
            .args(["run", "--quiet", "--release", "--package", "leaktrace"])
            .args(["--example", "large_capture", "--"])
            .args(["--sites", "5000", "--intervals", "1000"])
            .args(["--activity", activity])
            .arg(&file);
        run::run(&mut cargo)?;
        for format in ["text", "json"] {
            let mut seconds = Vec::new();
            let mut peak = 0;
            for _ in 0..turns {
                let cost = report(&file, format)?;
                seconds.push(cost.time.as_secs_f64());
                peak = peak.max(cost.peak_bytes >> 20);
            }
            let seconds = super::spread(&mut seconds, 2);
            println!("  {name:<24} --format {format:<5} {seconds:>26} {peak:>12}");
        }
        let bytes = fs::metadata(&file)?.len() >> 20;
        println!("  {name:<24} the file has {bytes} MiB");
    }
    Ok(())
}

/// What a command took.
struct Cost {
    time: Duration,
    /// Most memory that was resident at one time.
    peak_bytes: u64,
}

fn report(file: &Path, format: &str) -> Result<Cost> {
    let mut command = Command::new(workspace::leaktrace());
    command
        .args(["report", "--format", format])
        .arg(file)
        .stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("failed to start `{}`", run::line(&command)))?;
    let (status, peak_bytes) = wait(&mut child).context("failed to wait for `leaktrace report`")?;
    let time = start.elapsed();
    ensure!(
        status == 0,
        "`{}` failed: wait status {status:#x}",
        run::line(&command)
    );
    Ok(Cost { time, peak_bytes })
}

/// Waits for a child: its wait status, and the most memory it had resident, in bytes.
pub(super) fn wait(child: &mut Child) -> std::io::Result<(i32, u64)> {
    let pid = child.id().cast_signed();
    let mut status = 0;
    // SAFETY: `rusage` consists of integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that outlive the call. The child is ours and `child` is not
    // waited for elsewhere, so that its process id cannot have been given to another process.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    if waited != pid {
        return Err(std::io::Error::last_os_error());
    }
    // Linux counts in KiB (getrusage(2)).
    Ok((status, usage.ru_maxrss.unsigned_abs() << 10))
}
