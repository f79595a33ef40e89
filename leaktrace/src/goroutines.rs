//! `leaktrace goroutines -p PID`: one look at the goroutines of a process. Attaches nothing.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    capture::{Capture, schema},
    drain::{self, Purpose},
    inventory::goroutines::Goroutines as Reader,
    privileges::{self, Phase},
    record::monotonic_ns,
    report::goroutines::{self, Goroutines},
    symbolize::{Symbolizer, addresses_in},
    target::{Target, TargetError, maps::Modules},
};

/// Takes a census of process `pid` and names what is in it.
///
/// # Errors
///
/// The process cannot be looked at, or is not a Go program whose layout is known.
pub fn look(pid: i32) -> Result<Goroutines> {
    privileges::keep(Phase::Look);
    let target = Target::open(pid)?;
    let unsupported = |reason: String| TargetError::Unsupported { pid, reason };
    let go = target.go_program()?;
    let reader = Reader::new(target.memory, go).map_err(unsupported)?;
    let mut interval = schema::Interval::default();
    let now = monotonic_ns();
    drain::Goroutines::new(reader, now, Duration::ZERO)
        .with_running_stacks()
        .interval(&mut interval, now, &Purpose::Interval);
    let capture = named(&target, interval)?;
    goroutines::build(&capture, capture.symbols.as_ref())
        .with_context(|| format!("failed to read the goroutines of process {pid}"))
}

/// The code of a process: its modules, open, and where they are mapped.
pub(crate) struct Code {
    files: Modules,
    pub(crate) modules: Vec<schema::Module>,
    pub(crate) mappings: Vec<schema::Mapping>,
}

impl Code {
    /// Reads the mappings.
    pub(crate) fn of(target: &Target) -> Result<Self, TargetError> {
        let map = target.address_map()?;
        let mut files = Modules::default();
        let mut mappings = Vec::new();
        for mapping in map.executable() {
            let module = files.intern(&map, mapping) as u32;
            mappings.push(schema::Mapping {
                start: mapping.address.0,
                end: mapping.address.1,
                file_offset: mapping.offset,
                module,
            });
        }
        let modules = files
            .iter()
            .zip(0..)
            .map(|(module, id)| schema::Module {
                id,
                path: module.path.clone(),
                build_id: module.build_id.clone().unwrap_or_default(),
            })
            .collect();
        Ok(Self {
            files,
            modules,
            mappings,
        })
    }

    /// Names its addresses.
    pub(crate) fn symbolizer(&self) -> Symbolizer<'_> {
        let open = |wanted: &crate::symbolize::Module| {
            self.files
                .open_path(&wanted.path, wanted.build_id.as_deref())
        };
        Symbolizer::from_capture(&self.modules, &self.mappings, open)
    }
}

/// A capture of this one interval, with its symbols.
fn named(target: &Target, mut interval: schema::Interval) -> Result<Capture> {
    let code = Code::of(target)?;
    let addresses: Vec<_> = addresses_in(&interval).collect();
    let symbols = code.symbolizer().symbols(&addresses);
    (interval.modules, interval.mappings) = (code.modules, code.mappings);
    Ok(Capture {
        symbols: Some(symbols),
        ..Capture::of(schema::Header::default(), vec![interval])
    })
}
