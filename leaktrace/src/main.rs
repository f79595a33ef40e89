//! The `leaktrace` command: what was typed, exit codes, and the one line of an error.

mod args;
mod exporting;
mod generate;
mod talk;
mod terminal;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use leaktrace::{
    check, goroutines,
    loader::LoadError,
    privileges::{self, Phase},
    reading::{read_capture, read_report, symbols},
    record,
    report::{self, Report, ReportOptions},
    target::{NsPidError, SwitchError, TargetError},
    top::{self, NoTerminal},
    verdict::Verdict,
    why,
};

use crate::{
    args::{Args, Command, Format, WhyFormat},
    talk::{LookProgress, Talk},
};

const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const LEAKS_FOUND: u8 = 3;
const TARGET_GONE: u8 = 4;
const NOT_PERMITTED: u8 = 5;
const NOT_SUPPORTED: u8 = 6;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Record(args) => record(&args),
        Command::Report(args) => show(&args),
        Command::Export(args) => export(&args),
        Command::Diff(args) => diff(&args),
        Command::Top(args) => top(&args),
        Command::Goroutines(args) => look(&args),
        Command::Why(args) => why(&args),
        Command::Check(args) => check(&args),
        Command::Generate(args) => generate::generate(&args.folder).map(|()| DONE),
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        if is_closed_pipe(&error) {
            return DONE;
        }
        // One line, whatever the causes contain.
        let text = format!("{error:#}").replace(['\n', '\r'], " ");
        let _ = writeln!(io::stderr(), "leaktrace: {text}");
        exit_code(&error)
    }))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<TargetError>() {
        Some(TargetError::Gone { .. } | TargetError::Zombie { .. }) => return TARGET_GONE,
        Some(TargetError::NotPermitted { .. }) => return NOT_PERMITTED,
        Some(TargetError::Ourselves { .. } | TargetError::Thread { .. }) => return USAGE,
        Some(TargetError::KernelThread { .. } | TargetError::Unsupported { .. }) => {
            return NOT_SUPPORTED;
        }
        Some(TargetError::Other { .. }) | None => {}
    }
    match error.downcast_ref::<NsPidError>() {
        Some(NsPidError::Gone { .. }) => return TARGET_GONE,
        Some(NsPidError::Several { .. }) => return USAGE,
        Some(NsPidError::NoList(_)) | None => {}
    }
    if error.is::<NoTerminal>() {
        return USAGE;
    }
    match error.downcast_ref::<SwitchError>() {
        Some(SwitchError::Unsupported { .. }) => return NOT_SUPPORTED,
        Some(SwitchError::NotPermitted { .. }) => return NOT_PERMITTED,
        _ => {}
    }
    match error.downcast_ref::<LoadError>() {
        Some(LoadError::NotPermitted { .. }) => NOT_PERMITTED,
        Some(LoadError::Gone { .. }) => TARGET_GONE,
        Some(
            LoadError::NotOnHost
            | LoadError::Unsupported { .. }
            | LoadError::CodeDiffers { .. }
            | LoadError::Elsewhere { .. },
        ) => NOT_SUPPORTED,
        Some(LoadError::Other { .. } | LoadError::TooOften { .. }) | None => FAILED,
    }
}

/// A reader such as `head` that has seen enough is not an error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn record(args: &args::Record) -> Result<u8> {
    if let Some(conflict) = args.conflict() {
        conflict.exit();
    }
    let mut progress = Talk::new(args.quiet);
    let recorded = record::record(&args.options()?, args.output.clone(), &mut progress)?;
    if !args.quiet {
        let report = read_report(&recorded.file, &ReportOptions::default(), &[])?;
        print_text(&report, 3, false)?;
        let file = recorded.file.display();
        let _ = writeln!(
            io::stderr(),
            "leaktrace: read on with `leaktrace report {file}`"
        );
    }
    Ok(DONE)
}

fn show(args: &args::Report) -> Result<u8> {
    privileges::keep(Phase::Name);
    let options = ReportOptions {
        stacks: args.sites,
        ..args.selection.options()
    };
    let mut report = read_report(&args.file, &options, &args.selection.debug_dir)?;
    let groups = report.goroutines.iter().flat_map(|part| &part.groups);
    let leaks = report
        .sites
        .iter()
        .map(|site| site.verdict)
        .chain(groups.filter_map(|group| group.verdict))
        .any(|verdict| verdict == Verdict::Leak);
    match args.format {
        Format::Text => print_text(&report, args.sites, args.all_frames)?,
        Format::Json => {
            report.sites.truncate(args.sites);
            report::json::write(&report, io::stdout().lock())?;
        }
    }
    Ok(if args.fail_on_leak && leaks {
        LEAKS_FOUND
    } else {
        DONE
    })
}

fn export(args: &args::Export) -> Result<u8> {
    if let Some(conflict) = args.conflict() {
        conflict.exit();
    }
    privileges::keep(Phase::NameAndSave);
    let selection = &args.selection;
    let capture = read_capture(&args.file)?;
    let symbols = symbols(&capture, &selection.debug_dir);
    let detailed = report::build_detailed(&capture, Some(&symbols), &selection.options());
    exporting::export(args, &capture, &detailed)?;
    Ok(DONE)
}

fn diff(args: &args::Diff) -> Result<u8> {
    privileges::keep(Phase::Name);
    let options = ReportOptions::default();
    let base = read_report(&args.base, &options, &[])?;
    let file = read_report(&args.file, &options, &[])?;
    let diff = report::diff::diff(&base, &file);
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => {
            let options = terminal::text_options(args.sites, args.all_frames);
            report::text::write_diff(&diff, options, &mut out)?;
        }
        Format::Json => report::json::write(&diff, &mut out)?,
    }
    Ok(DONE)
}

fn top(args: &args::Top) -> Result<u8> {
    let Some(seen) = top::top(&args.options()?, terminal::is_coloured())? else {
        return Ok(DONE);
    };
    if seen.by_itself {
        print_text(&seen.report, 3, false)?;
        let end = seen.report.window.end_text;
        let _ = writeln!(io::stderr(), "leaktrace: top has ended: {end}");
    }
    Ok(DONE)
}

fn look(args: &args::Goroutines) -> Result<u8> {
    let of_capture = |file: &Path| {
        privileges::keep(Phase::Name);
        let report = read_report(file, &ReportOptions::default(), &[])?;
        let name = file.display();
        report.goroutines.with_context(|| {
            format!("`{name}` has no goroutines: none of a Go program were recorded")
        })
    };
    let mut goroutines = match &args.file {
        Some(file) => of_capture(file)?,
        None => goroutines::look(args.process.need()?)?,
    };
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => report::goroutines::write_text(&goroutines, args.groups, &mut out)?,
        Format::Json => {
            goroutines.groups.truncate(args.groups);
            report::json::write(&goroutines, &mut out)?;
        }
    }
    Ok(DONE)
}

fn why(args: &args::Why) -> Result<u8> {
    let progress = LookProgress::new(false);
    let why = why::why(&args.options()?, |watch| progress.show(watch))?;
    drop(progress);
    let mut out = io::stdout().lock();
    match args.format {
        WhyFormat::Text => report::why::write_text(&why, &mut out)?,
        WhyFormat::Json => report::json::write(&why, &mut out)?,
        WhyFormat::Dot => report::why::write_dot(&why, &mut out)?,
    }
    Ok(DONE)
}

fn check(args: &args::Check) -> Result<u8> {
    let checked = check::check(args.process.find()?)?;
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => report::check::write_text(&checked.check, &mut out)?,
        Format::Json => report::json::write(&checked.check, &mut out)?,
    }
    match checked.refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(DONE),
    }
}

fn print_text(report: &Report, sites: usize, all_frames: bool) -> Result<()> {
    let options = terminal::text_options(sites, all_frames);
    report::text::write(report, options, io::stdout().lock())?;
    Ok(())
}
