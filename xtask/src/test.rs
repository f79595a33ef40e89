//! `cargo xtask test`: every check there is. What continuous integration runs.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    checks::{self, Counts},
    dist,
    setup::{self, Scope},
    targets, vm,
};

/// Runs every check, even after one has failed, and sums up. `scope` says on which Go versions the
/// integration tests run.
///
/// # Errors
///
/// When setting up or building fails, or any check.
pub(crate) fn run(scope: Scope) -> Result<()> {
    setup::run(scope)?;

    let mut report = Report::default();
    report.check("format", checks::format);
    report.check("clippy", checks::clippy);
    report.check("clippy, kernel side", checks::clippy_kernel_side);
    report.check("docs", checks::docs);
    report.check("duplicate dependencies", checks::duplicates);
    report.check("second cargo check", checks::second_check);
    let mut counts = Counts::default();
    report.check("unit and replay", || checks::unit_tests(&mut counts));
    let is_built = report.check("build leaktrace and its targets", || {
        crate::release::build()?;
        targets::build(scope)
    });
    if is_built {
        report.check("what is shipped", dist::make);
        report.check("integration", || {
            checks::integration_tests(scope, &mut counts)
        });
        report.check("other kernels", || vm::check(&mut counts));
    } else {
        for name in ["what is shipped", "integration", "other kernels"] {
            report.skip(name, "there is nothing to run it on");
        }
    }
    if scope == Scope::Full {
        report.check("what is shipped, built twice", dist::twice);
    }
    report.close(counts)
}

/// What has been checked so far.
struct Report {
    started: Instant,
    lines: Vec<String>,
    failed: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            lines: Vec::new(),
            failed: 0,
        }
    }
}

impl Report {
    /// Runs one check; says whether it passed.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) -> bool {
        eprintln!("test: {name}");
        let started = Instant::now();
        let result = check();
        let seconds = started.elapsed().as_secs();
        match &result {
            Ok(()) => self.lines.push(format!("ok      {name} ({seconds} s)")),
            Err(error) => {
                eprintln!("test: {name}: {error:#}");
                self.lines.push(format!("FAILED  {name}: {error:#}"));
                self.failed += 1;
            }
        }
        result.is_ok()
    }

    /// Counts as failed: what did not run has not passed.
    fn skip(&mut self, name: &str, reason: &str) {
        self.lines.push(format!("SKIPPED {name}: {reason}"));
        self.failed += 1;
    }

    /// Prints the summary, last the line with which test runners close.
    fn close(self, counts: Counts) -> Result<()> {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; {} ignored; {} of {} checks ok; finished in {} s",
            counts.passed,
            counts.failed,
            counts.ignored,
            self.lines.len() - self.failed,
            self.lines.len(),
            self.started.elapsed().as_secs()
        );
        if self.failed > 0 {
            bail!("{} of {} checks failed", self.failed, self.lines.len());
        }
        Ok(())
    }
}
