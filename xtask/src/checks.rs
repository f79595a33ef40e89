//! The checks that `cargo xtask test` consists of.
//!
//! Each is a function that returns an error when what it checks does not hold; none stops the others.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    bpf, go, python, run,
    run::{is_root, line},
    setup::Scope,
    workspace,
};

/// Crates that are there in two versions, and why that is so. Anything else fails the check, and so
/// does a name here that is no longer needed.
const DUPLICATES: [(&str, &str); 2] = [
    (
        "getrandom",
        "0.3 of ahash, which inferno and parquet hash with; 0.4 of what tests and chores need besides",
    ),
    (
        "syn",
        "of derive macros at build time only: some have moved to version 3, not all",
    ),
];

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(arguments);
    command
}

fn kernel_side() -> PathBuf {
    workspace::root().join("leaktrace-ebpf")
}

/// The sources are formatted, those of the kernel side too.
pub(crate) fn format() -> Result<()> {
    run::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run::run(cargo(&["fmt", "--check"]).current_dir(kernel_side()))
}

/// Simulated programs are judged right over so many seeds.
pub(crate) fn simulate(seeds: u32) -> Result<()> {
    let tests = [
        "test",
        "--release",
        "--package",
        "leaktrace",
        "--lib",
        "windows_tests",
        "--",
        "--nocapture",
    ];
    run::run(cargo(&tests).env("LEAKTRACE_SEEDS", seeds.to_string()))
}

/// No lint fires on the user side, and its lock file is up to date.
pub(crate) fn clippy() -> Result<()> {
    run::run(&mut cargo(&[
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// No lint fires on the kernel side, and its lock file is up to date. The linter is the twin of the
/// compiler that builds it.
pub(crate) fn clippy_kernel_side() -> Result<()> {
    let toolchain = bpf::Toolchain::find()?;
    let clippy = toolchain.rustc.with_file_name("cargo-clippy");
    ensure!(
        clippy.is_file(),
        "`{}` is not there; run `{}`",
        clippy.display(),
        "cargo xtask setup --test"
    );
    let target = workspace::target().join("bpf-clippy");
    let mut command = toolchain.command(clippy.as_os_str(), "clippy", &kernel_side(), &target);
    run::run(
        command
            .env("CARGO", workspace::cargo())
            .args(["--quiet", "--locked", "--", "-D", "warnings"]),
    )
}

/// Every public and private item's documentation renders, and its links lead somewhere.
pub(crate) fn docs() -> Result<()> {
    let mut doc = cargo(&[
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    run::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// No crate is there in two versions but those of [`DUPLICATES`].
pub(crate) fn duplicates() -> Result<()> {
    let tree = run::output(&mut cargo(&[
        "tree",
        "--workspace",
        "--duplicates",
        "--edges=normal",
        "--depth=0",
        "--prefix=none",
    ]))?;
    // cargo also lists one version that is built twice, for a macro and for the program.
    let versions: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, version)| (name, version.split_whitespace().next()))
        .collect();
    let names: Vec<&str> = versions.into_iter().map(|(name, _)| name).collect();
    let twice = names.windows(2).filter(|pair| pair[0] == pair[1]);
    let found: BTreeSet<&str> = twice.map(|pair| pair[0]).collect();
    for name in &found {
        let is_known = DUPLICATES.iter().any(|(known, _)| known == name);
        ensure!(
            is_known,
            "`{name}` is there in more than one version; see `cargo tree -d`"
        );
    }
    for (known, _) in DUPLICATES {
        ensure!(
            found.contains(known),
            "`{known}` is no longer there twice: take it off the list"
        );
    }
    Ok(())
}

/// A second `cargo check` compiles nothing: no build script names what it does not depend on.
pub(crate) fn second_check() -> Result<()> {
    let arguments = ["check", "--workspace", "--all-targets"];
    run::run(cargo(&arguments).arg("--quiet"))?;
    let second = cargo(&arguments)
        .arg("-v")
        .output()
        .context("failed to start `cargo check`")?;
    ensure!(
        second.status.success(),
        "`cargo {}` failed",
        arguments.join(" ")
    );
    let text = String::from_utf8_lossy(&second.stderr);
    let work = text.lines().find(|line| {
        ["Dirty", "Checking", "Compiling", "Running"]
            .contains(&line.split_whitespace().next().unwrap_or(""))
    });
    match work {
        Some(line) => bail!(
            "a second `cargo {}` still works: {}",
            arguments.join(" "),
            line.trim()
        ),
        None => Ok(()),
    }
}

/// What the test runners counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    /// Adds a runner's closing line; other lines count nothing.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        let counts = rest.split_once(". ").map_or("", |(_, counts)| counts);
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Unit tests and replays of recorded captures: no root, no kernel.
pub(crate) fn unit_tests(counts: &mut Counts) -> Result<()> {
    let mut test = cargo(&[
        "test",
        "--workspace",
        "--exclude",
        "leaktrace-tests",
        "--no-fail-fast",
    ]);
    count(test.env("INSTA_UPDATE", "no"), counts)
}

/// The privileged tests against the real kernel, one at a time: they load programs into it. Those on
/// Go services run on the versions of `scope`.
pub(crate) fn integration_tests(scope: Scope, counts: &mut Counts) -> Result<()> {
    let mut test = cargo(&["test", "--package", "leaktrace-tests", "--no-fail-fast"]);
    // Recordings are ended by each signal, also where what called this ignores some, as nohup and a shell's
    // background do: what is ignored stays so in whatever is started.
    let runner = match is_root() {
        true => "env --default-signal",
        false => "sudo --preserve-env env --default-signal",
    };
    test.args(["--", "--test-threads=1"])
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner)
        .env("LEAKTRACE_BIN", workspace::leaktrace())
        .env("LEAKTRACE_TARGETS", workspace::targets())
        .env("LEAKTRACE_GO", go::NEWEST.command()?)
        .env("LEAKTRACE_PYTHON", python::folder()?);
    if scope == Scope::Full {
        let versions = scope.go_versions().into_iter();
        let versions: Vec<_> = versions.map(|version| version.number).collect();
        test.env("LEAKTRACE_GO_VERSIONS", versions.join(","))
            .env("LEAKTRACE_FULL", "1");
    }
    count(&mut test, counts)
}

/// Runs a test runner, shows what it says and counts its closing lines.
fn count(test: &mut Command, counts: &mut Counts) -> Result<()> {
    let mut child = test
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", line(test)))?;
    let stdout = child
        .stdout
        .take()
        .context("the test runner has no stdout")?;
    for text in BufReader::new(stdout).lines() {
        let text = text.context("failed to read what the test runner says")?;
        println!("{text}");
        counts.add(&text);
    }
    let status = child.wait().context("failed to wait for the test runner")?;
    ensure!(status.success(), "`{}` failed: {status}", line(test));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn closing_lines_add_up_and_other_lines_count_nothing() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts.add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        counts.add("test checks::tests::two ... ok");
        counts.add("12 passed; 4 failed");
        assert_eq!(
            counts,
            Counts {
                passed: 9,
                failed: 3,
                ignored: 1
            }
        );
    }
}
