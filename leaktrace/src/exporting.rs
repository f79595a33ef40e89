//! `leaktrace export`: where the result goes. What it is comes from [`leaktrace::export`].

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use leaktrace::{
    capture::Capture,
    export,
    output::{self, Unfinished},
    report::Detailed,
};

use crate::args::{Export, Form};

/// Writes one form of a capture to where `args` says, whole or not at all.
pub(crate) fn export(args: &Export, capture: &Capture, detailed: &Detailed) -> Result<()> {
    match &args.output {
        Some(folder) if args.to == Form::Parquet => write_tables(detailed, folder)?,
        Some(path) => {
            let file = output::create(path)?;
            let unfinished = Unfinished::new(path);
            write(args, capture, detailed, &mut BufWriter::new(file))
                .with_context(|| format!("failed to write `{}`", path.display()))?;
            unfinished.finish();
        }
        None => {
            let stdout = io::stdout();
            ensure!(
                !(args.to.is_binary() && stdout.is_terminal()),
                "failed to write to a terminal: this form is binary, give a file with -o"
            );
            write(args, capture, detailed, &mut BufWriter::new(stdout.lock()))
                .context("failed to write to standard output")?;
        }
    }
    if args.to.adds_up()
        && let Some(text) = export::left_out(&detailed.report)
    {
        eprintln!("leaktrace: left out: {text}");
    }
    Ok(())
}

fn write(
    args: &Export,
    capture: &Capture,
    detailed: &Detailed,
    mut out: &mut dyn Write,
) -> io::Result<()> {
    let (report, value) = (&detailed.report, args.value.into());
    match args.to {
        Form::Pprof => export::pprof::write(detailed, capture, value, &mut out)?,
        Form::Folded => export::folded::write(report, value, &mut out)?,
        Form::Flamegraph => export::flamegraph::write(report, value, &mut out)?,
        Form::Speedscope => export::speedscope::write(report, value, &mut out)?,
        Form::Html => export::html::write(report, &mut out)?,
        Form::Json => export::json::write(report, &mut out)?,
        Form::Parquet => {
            let needs = "it is several files: give a directory with -o";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, needs));
        }
    }
    out.flush()
}

/// A file for each table.
fn write_tables(detailed: &Detailed, folder: &Path) -> Result<()> {
    output::create_folder(folder)?;
    let unfinished = Unfinished::new(folder);
    let metadata = export::parquet::metadata(&detailed.report);
    for table in export::parquet::tables(detailed) {
        let path = folder.join(format!("{}.parquet", table.name));
        let file: File = output::create(&path)?;
        table
            .write(&metadata, file)
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    unfinished.finish();
    Ok(())
}
