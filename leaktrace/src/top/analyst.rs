//! Keeps what is recorded, names addresses as they come, and makes a report of what there is.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    cost::{Cost, Meter},
    recorder::Interval,
};
use crate::{
    capture::{LiveCapture, schema},
    output::{self, Unfinished},
    record::default_file,
    report::{self, Report, ReportOptions},
    symbolize::{self, PcKind, Symbolizer, SymbolsBuilder},
};

/// A report may take this share of the time; the next one waits accordingly.
const SHARE: u32 = 5;

/// What the analyst is told.
pub(super) enum Input {
    /// By the recording.
    Header(Box<schema::Header>),
    Interval(Box<Interval>),
    Note(String),
    End(schema::Close),
    /// By the screen: write what is held into a new file.
    Save(PathBuf),
}

/// What the analyst tells the screen.
pub(super) enum Update {
    Snapshot(Arc<Snapshot>),
    /// A line for the user.
    Message(String),
}

/// A process at the end of an interval.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) report: Report,
    pub(super) cost: Cost,
    /// Records taken from the kernel's ring buffer since the attach.
    pub(super) events: u64,
    /// Where it would be saved.
    pub(super) file_name: String,
}

pub(super) struct Analyst {
    screen: Sender<Update>,
    live: Option<LiveCapture>,
    names: Names,
    meter: Meter,
    cost: Cost,
    events: u64,
}

impl Analyst {
    pub(super) fn new(screen: Sender<Update>) -> Self {
        Self {
            screen,
            live: None,
            names: Names::default(),
            meter: Meter::start(),
            cost: Cost::default(),
            events: 0,
        }
    }

    /// Works until nobody has anything to tell any more; gives the last report, if there was anything
    /// to report.
    pub(super) fn run(mut self, inputs: &Receiver<Input>) -> Option<Report> {
        let mut ready_at = Instant::now();
        let mut is_stale = false;
        loop {
            // All that has come is taken in before anything is made of it.
            let wait = match is_stale {
                true => ready_at.saturating_duration_since(Instant::now()),
                false => Duration::from_secs(60),
            };
            match inputs.recv_timeout(wait) {
                Ok(input) => {
                    is_stale |= self.take(input);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if !is_stale => continue,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let began = Instant::now();
            if let Some(report) = self.report() {
                self.tell(report);
            }
            is_stale = false;
            ready_at = Instant::now() + began.elapsed() * SHARE;
        }
        self.report()
    }

    /// Whether there is something new to report.
    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Header(header) => self.live = Some(LiveCapture::new(*header)),
            Input::Interval(interval) => {
                let Interval {
                    interval,
                    files,
                    events,
                    runs,
                    limits,
                } = *interval;
                self.cost = self.meter.read(runs);
                self.events = events;
                self.names.learn(&interval, files);
                if let Some(live) = &mut self.live {
                    live.push(interval, events, limits);
                }
                return true;
            }
            Input::Note(text) => self.say(text),
            Input::End(close) => {
                if let Some(live) = &mut self.live {
                    live.end(close);
                }
                return true;
            }
            Input::Save(path) => {
                let name = path.display();
                match self.save(&path) {
                    Ok(()) => self.say(format!("saved; read on with `leaktrace report {name}`")),
                    Err(error) => self.say(format!("{error:#}")),
                }
            }
        }
        false
    }

    fn report(&mut self) -> Option<Report> {
        let live = self.live.as_ref()?;
        self.names.look_up();
        let symbols = self.names.symbols.symbols();
        Some(report::build(
            live.capture(),
            Some(symbols),
            &ReportOptions::default(),
        ))
    }

    fn tell(&self, report: Report) {
        let target = &report.target;
        let file_name = default_file(&target.comm, target.pid).display().to_string();
        let snapshot = Snapshot {
            report,
            cost: self.cost,
            events: self.events,
            file_name,
        };
        let _ = self.screen.send(Update::Snapshot(Arc::new(snapshot)));
    }

    fn say(&self, text: String) {
        let _ = self.screen.send(Update::Message(text));
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        let live = self.live.as_ref().context("nothing is recorded yet")?;
        self.names.look_up();
        let file = output::create(path)?;
        let unfinished = Unfinished::new(path);
        let file = live.write(self.names.symbols.symbols(), file)?;
        file.sync_all()
            .with_context(|| format!("failed to write `{}`", path.display()))?;
        unfinished.finish();
        Ok(())
    }
}

/// The names of the addresses seen so far, each looked up once.
#[derive(Default)]
struct Names {
    modules: Vec<(schema::Module, Option<File>)>,
    mappings: Vec<schema::Mapping>,
    known: HashSet<(u64, PcKind)>,
    unnamed: Vec<(u64, PcKind)>,
    symbols: SymbolsBuilder,
}

impl Names {
    fn learn(&mut self, interval: &schema::Interval, files: Vec<Option<File>>) {
        let modules = interval.modules.iter().cloned();
        self.modules.extend(modules.zip(files));
        self.mappings.extend_from_slice(&interval.mappings);
        let addresses = symbolize::addresses_in(interval);
        let new = addresses.filter(|address| self.known.insert(*address));
        self.unnamed.extend(new);
    }

    fn look_up(&mut self) {
        let addresses = std::mem::take(&mut self.unnamed);
        if addresses.is_empty() {
            return;
        }
        let modules = &self.modules;
        let open = |wanted: &symbolize::Module| {
            let mut modules = modules.iter();
            let file = modules.find_map(|(module, file)| {
                (symbolize::Module::from(module) == *wanted).then_some(file.as_ref())?
            });
            file.map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
        };
        let modules = self.modules.iter().map(|(module, _)| module);
        let frames = Symbolizer::from_capture(modules, &self.mappings, open).symbolize(&addresses);
        self.symbols.add(&addresses, frames);
    }
}
