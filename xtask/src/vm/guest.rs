//! One kernel under QEMU: booted, and what it said.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{kernels::Kernel, say, tests::List};
use crate::checks::Counts;

/// A guest that takes longer hangs, in seconds.
const LIMIT_S: &str = "1200";

/// Interpreted, with a PC's devices of which only the serial line is used: what does without `/dev/kvm`.
const MACHINE: &str = "-accel tcg,thread=multi -M q35 -cpu max,la57=off -smp 1 -m 1536 -nodefaults \
                       -no-user-config -display none -serial stdio -no-reboot";

/// What a guest said until it ended.
pub(super) struct Ran {
    /// As the guest's own `uname -r`.
    pub(super) release: String,
    /// `features` of `leaktrace check`.
    pub(super) features: Vec<Value>,
    /// Of all its tests.
    pub(super) counts: Counts,
    /// Until the first process.
    pub(super) up: Duration,
    /// Until the end.
    pub(super) all: Duration,
}

/// Boots `kernel` and runs `list`; what it says goes to `log`. Once more if the first process was never reached,
/// which is said.
///
/// # Errors
///
/// When it does not get to its end, or a test fails or did not run.
pub(super) fn run(kernel: &Kernel, initramfs: &Path, list: &List, log: &Path) -> Result<Ran> {
    let mut said = boot(kernel, initramfs, list, log)?;
    if said.up.is_none() {
        say(&format!(
            "{} DID NOT COME UP and is booted once more",
            kernel.release
        ));
        said = boot(kernel, initramfs, list, log)?;
    }
    said.judge(&kernel.release, list)
        .with_context(|| format!("see `{}`", log.display()))
}

/// The lines of a guest.
struct Said {
    text: String,
    up: Option<Duration>,
    all: Duration,
}

fn boot(kernel: &Kernel, initramfs: &Path, list: &List, log: &Path) -> Result<Said> {
    let started = Instant::now();
    let mut child = Command::new("timeout")
        .args([LIMIT_S, "qemu-system-x86_64"])
        .args(MACHINE.split_whitespace())
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        // The first process finds `LIST` among its variables.
        .arg(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off LIST={}",
            list.name
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start `qemu-system-x86_64`")?;
    let mut log =
        File::create(log).with_context(|| format!("failed to write `{}`", log.display()))?;
    let mut up = None;
    let mut text = String::new();
    let mut lines = BufReader::new(child.stdout.take().context("QEMU has no stdout")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        log.write_all(&line)?;
        let line_text = String::from_utf8_lossy(&line).replace('\r', "");
        if line_text.starts_with("vm: begins") {
            up = Some(started.elapsed());
        }
        text.push_str(&line_text);
        line.clear();
    }
    child.wait()?;
    let all = started.elapsed();
    Ok(Said { text, up, all })
}

impl Said {
    /// What the tests that failed said: the log is on a machine that may be gone when somebody reads of it.
    fn show_failures(&self) {
        for part in self.text.split("\nfailures:\n").skip(1) {
            // libtest says them twice: with what they said, and as a list.
            if part.trim_start().starts_with("----") {
                eprintln!("{}", part.trim());
            }
        }
    }

    fn judge(self, kernel: &str, list: &List) -> Result<Ran> {
        let up = self.up.context("it did not come up")?;
        let mut counts = Counts::default();
        let mut bad = Vec::new();
        for line in self.text.lines() {
            counts.add(line);
            let is_exit = line.starts_with("vm: ") && line.contains(" ended with ");
            let is_bad = is_exit && !line.ends_with(" 0") || line == "vm: bpftool failed";
            if is_bad || line.starts_with("test ") && line.ends_with("FAILED") {
                bad.push(line);
            }
        }
        if !bad.is_empty() {
            self.show_failures();
            bail!("{}", bad.join("; "));
        }
        ensure!(
            self.text.contains("\nvm: ends\n"),
            "it did not get to its end"
        );
        let wanted = list.count();
        ensure!(
            counts.passed == wanted,
            "{} of {wanted} tests passed, and the others did not run",
            counts.passed
        );
        let between = |from: &str, to: &str| {
            let rest = self.text.split_once(from)?.1;
            Some(rest.split_once(to)?.0.trim())
        };
        let release = between("vm: begins ", "\n").unwrap_or_default().to_owned();
        ensure!(release == kernel, "it is `{release}`, not `{kernel}`");
        // On a kernel that lacks something a line of talk comes after it.
        let check = between("vm: check\n", "vm: tests\n").unwrap_or_default();
        let end = check.rfind('}').map_or(0, |at| at + 1);
        let check: Value = serde_json::from_str(&check[..end])
            .context("failed to read what `leaktrace check` found")?;
        let features = check["features"].as_array().cloned().unwrap_or_default();
        Ok(Ran {
            release,
            features,
            counts,
            up,
            all: self.all,
        })
    }
}
