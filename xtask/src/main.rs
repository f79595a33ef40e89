//! The chores of the project: `cargo xtask setup`, `build`, `demo`, `test`, `vm`, `dist`, `bench`, `tidy`,
//! `go-layouts`.
//!
//! A new machine with rustup's stable toolchain needs nothing else: `demo` and `test` set up what they
//! need. Every failure names the step and the command.

mod bpf;
mod run;
mod workspace;
mod go;
mod python;
mod debian;
mod setup;
mod release;
mod targets;
mod service;
mod demo;
mod man;
mod checks;
mod dist;
mod vm;
mod test;
mod bench;
mod services;
mod tidy;
mod go_layouts;
mod fuzz;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what is missing: a compiler and a linker for BPF, Go for the sample services.
    Setup {
        /// Also what the tests need.
        #[arg(long)]
        test: bool,
        /// Also every Go version that is known to work.
        #[arg(long)]
        full: bool,
    },
    /// Set up, then build leaktrace (release) and the sample targets.
    Build {
        /// The sample targets for every Go version.
        #[arg(long)]
        full: bool,
    },
    /// Attach to a leaking Go service for 15 seconds and print the report.
    Demo,
    /// Run every check: format, lints, docs, unit, replay and, as root, integration tests.
    Test {
        /// The integration tests on every Go version, not the oldest and the newest only.
        #[arg(long)]
        full: bool,
    },
    /// Measure what leaktrace costs a program that allocates as fast as it can.
    Bench {
        /// How many times each of the three is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        pairs: u32,
        /// How long each measurement takes, in seconds.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// How many goroutines allocate; one a processor if not given.
        #[arg(long)]
        workers: Option<u32>,
        /// Only cases with this in their name.
        #[arg(long, default_value = "")]
        case: String,
    },
    /// Record services that Debian ships, under load, and check what comes of it: prometheus, etcd, caddy,
    /// syncthing, nats-server, redis, postgres, nginx, python3.
    Services {
        /// Which; all if none is named.
        names: Vec<String>,
        /// How long each trial is recorded, in seconds.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
        seconds: u64,
    },
    /// Put together what is shipped, in `target/dist`: the static file, manual pages, completions, a bill of
    /// materials, and the sums of it all.
    Dist {
        /// Build all of it again in another folder: every file must be the same to the byte.
        #[arg(long)]
        twice: bool,
    },
    /// Run tests on the kernels of Debian's releases, under QEMU: 5.10, 6.1, 6.12, 6.18, 7.3, 6.1-rt, 6.12-rt, 7.1.
    Vm {
        /// Which; all if none is named, and then docs/kernel-features.md is written. `-rt`: the one that preempts
        /// its own code.
        series: Vec<String>,
    },
    /// Write manual pages and completions to `target/man` and `target/completions`.
    Man,
    /// Judge simulated programs that are recorded in windows, over many seeds (docs/sampling.md).
    Simulate {
        /// How many programs of each kind.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        seeds: u32,
    },
    /// Hold the architecture's invariants by reading the sources.
    Tidy,
    /// Try hostile bytes on everything that reads them, with what is known to be worth trying
    /// (docs/hostile-input.md).
    Fuzz {
        /// Which of `fuzz/fuzz_targets`; each if none is named.
        target: Option<String>,
        /// How long each is run, in seconds.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Measure the Go runtime's types anew, in every known release.
    GoLayouts,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match arguments.chore {
        Chore::Setup { full: true, .. } => setup::run(setup::Scope::Full),
        Chore::Setup { test: true, .. } => setup::run(setup::Scope::Test),
        Chore::Setup { .. } => setup::run(setup::Scope::Demo),
        Chore::Build { full } => {
            let scope = for_tests(full);
            setup::run(scope)?;
            release::build()?;
            targets::build(scope)
        }
        Chore::Demo => demo::run(),
        Chore::Test { full } => test::run(for_tests(full)),
        Chore::Bench {
            pairs,
            seconds,
            workers,
            ref case,
        } => bench::run(pairs, seconds, workers, case),
        Chore::Services { ref names, seconds } => services::run(names, seconds),
        Chore::Dist { twice: true } => dist::twice(),
        Chore::Dist { twice: false } => dist::run(),
        Chore::Vm { ref series } => vm::run(series),
        Chore::Man => man::make(),
        Chore::Simulate { seeds } => checks::simulate(seeds),
        Chore::Tidy => tidy::run(),
        Chore::Fuzz {
            ref target,
            seconds,
        } => fuzz::fuzz(target.as_deref(), seconds),
        Chore::GoLayouts => go_layouts::run(),
    }
}

fn for_tests(full: bool) -> setup::Scope {
    if full {
        setup::Scope::Full
    } else {
        setup::Scope::Test
    }
}
