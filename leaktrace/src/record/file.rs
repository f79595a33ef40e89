//! `leaktrace record`: a recording that goes into a file.

use std::{
    collections::BTreeMap,
    fs::File,
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Ending, Now, Options, Recorder, limit, retention, run};
use crate::{
    capture::{CaptureWriter, schema},
    loss, output,
    plan::Plan,
    privileges::{self, Phase},
    target::Target,
    why::Watch,
};

/// What came of it.
pub struct Recorded {
    /// The capture file.
    pub file: PathBuf,
    /// How the window ended.
    pub end: schema::End,
}

/// Told what happens, for people.
pub trait Progress {
    /// Probes are live.
    fn attached(&mut self, target: &Target, plan: &Plan, file: &Path);
    /// Another interval is in the file.
    fn interval(&mut self, state: &State);
    /// Something worth knowing.
    fn note(&mut self, text: &str);
    /// The window is closed, symbols are being looked up.
    fn symbolizing(&mut self);
    /// What keeps the objects of leaks is being looked for.
    fn looking(&mut self, watch: &Watch);
}

/// Where a recording stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Since the window opened.
    pub elapsed: Duration,
    /// Until it closes, if that was said.
    pub left: Option<Duration>,
    /// Records taken from the kernel's ring buffer.
    pub events: u64,
    /// What was lost, all causes together, but for what is older than the attach.
    pub losses: u64,
    /// The target's resident memory, bytes; `None`: it could not be read.
    pub rss: Option<u64>,
    /// The same at the attach.
    pub rss_at_attach: Option<u64>,
}

/// Records into a file until the window ends, then symbolizes and closes it. The file must not exist
/// yet; `None`: a name made from the target and the time.
///
/// # Errors
///
/// The target or the kernel cannot be traced, or the file cannot be written. Whatever intervals
/// were written stay readable.
pub fn record(
    options: &Options,
    file: Option<PathBuf>,
    progress: &mut dyn Progress,
) -> Result<Recorded> {
    let mut recorder = ToFile {
        wanted: file,
        file: None,
        header: schema::Header::default(),
        is_attached: false,
        duration: options.duration,
        retention: options.retention,
        losses: BTreeMap::new(),
        state: State::default(),
        progress,
    };
    match run(options, &mut recorder, pending()) {
        Ok(ending) => {
            // The threads of the recording have ended.
            privileges::keep(match options.retention {
                Some(_) if recorder.is_go() => Phase::Look,
                _ => Phase::Name,
            });
            recorder.close(ending)
        }
        Err(error) => {
            recorder.abandon();
            Err(error)
        }
    }
}

/// The recorder that writes a file.
struct ToFile<'a> {
    wanted: Option<PathBuf>,
    file: Option<(PathBuf, CaptureWriter<File>)>,
    header: schema::Header,
    is_attached: bool,
    duration: Option<Duration>,
    /// Bytes of memory for looking for what keeps leaks, if that is wanted.
    retention: Option<u64>,
    losses: BTreeMap<String, u64>,
    state: State,
    progress: &'a mut dyn Progress,
}

impl ToFile<'_> {
    fn writer(&mut self) -> Result<&mut CaptureWriter<File>> {
        let file = self.file.as_mut().context("failed to find the capture")?;
        Ok(&mut file.1)
    }

    /// Names every address seen and closes the capture.
    fn close(mut self, mut ending: Ending) -> Result<Recorded> {
        let symbols = ending.code.symbols();
        self.writer()?
            .symbols(&symbols)
            .context("failed to write the symbols to the capture")?;
        if let Some(found) = &ending.retention {
            self.writer()?
                .retention(found)
                .context("failed to write what points to blocks to the capture")?;
        }
        if let Some(max_memory) = self.retention
            && self.is_go()
        {
            match self.look(max_memory, &symbols, &ending) {
                Ok((retention, limits)) => {
                    self.writer()?
                        .retention(&retention)
                        .context("failed to write what keeps leaks to the capture")?;
                    ending.close.limits.extend(limits);
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    self.progress
                        .note(&format!("not seen: {}: {reason}", retention::WHAT));
                    ending.close.limits.push(limit(retention::WHAT, &reason));
                }
            }
        }
        let (path, writer) = self.file.context("failed to find the capture")?;
        let file = writer
            .close(&ending.close)
            .context("failed to close the capture")?;
        file.sync_all().context("failed to close the capture")?;
        Ok(Recorded {
            file: path,
            end: ending.close.end(),
        })
    }

    fn is_go(&self) -> bool {
        let target = self.header.target.as_ref();
        target.is_some_and(|target| target.go.is_some())
    }

    /// Looks for what keeps the objects of the sites that leak by what is in the file.
    fn look(
        &mut self,
        max_memory: u64,
        symbols: &schema::Symbols,
        ending: &Ending,
    ) -> Result<(schema::Retention, Vec<schema::Limit>)> {
        let (_, writer) = self.file.as_ref().context("failed to find the capture")?;
        let wanted = retention::wanted(writer.get_ref(), symbols, &ending.own_samples)?;
        let progress = &mut self.progress;
        retention::look(&self.header, wanted, max_memory, |watch| {
            progress.looking(watch);
        })
    }

    /// Where nothing was recorded, leaves no file that says otherwise.
    fn abandon(self) {
        if let (Some((path, _)), false) = (self.file, self.is_attached) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Recorder for ToFile<'_> {
    fn open(&mut self, target: &Target) -> Result<()> {
        let path = match self.wanted.take() {
            Some(path) => path,
            None => default_file(&target.comm, target.pid as u32),
        };
        let writer = CaptureWriter::new(output::create(&path)?)
            .with_context(|| format!("failed to write `{}`", path.display()))?;
        self.file = Some((path, writer));
        Ok(())
    }

    fn header(&mut self, header: schema::Header) -> Result<()> {
        self.writer()?
            .header(&header)
            .context("failed to write the capture's header")?;
        self.header = header;
        Ok(())
    }

    fn interval(&mut self, interval: schema::Interval, now: &Now<'_>) -> Result<()> {
        self.writer()?
            .interval(&interval)
            .context("failed to write an interval to the capture")?;
        let changed = interval.losses.iter();
        let changed = changed.filter(|loss| !loss::is_expected(&loss.cause));
        self.losses
            .extend(changed.map(|loss| (loss.cause.clone(), loss.count)));
        let elapsed = Duration::from_nanos(interval.t_ns);
        let rss = interval.memory.and_then(|memory| memory.rss);
        self.state = State {
            elapsed,
            left: self.duration.map(|whole| whole.saturating_sub(elapsed)),
            events: now.events,
            losses: self.losses.values().sum(),
            rss,
            rss_at_attach: self.state.rss_at_attach.or(rss),
        };
        if self.is_attached {
            self.progress.interval(&self.state);
        }
        Ok(())
    }

    fn attached(&mut self, target: &Target, plan: &Plan) {
        self.is_attached = true;
        if let Some((path, _)) = &self.file {
            self.progress.attached(target, plan, path);
        }
        self.progress.interval(&self.state);
    }

    fn note(&mut self, text: &str) {
        self.progress.note(text);
    }

    fn looking(&mut self, watch: &Watch) {
        self.progress.looking(watch);
    }

    fn detached(&mut self) {
        self.progress.symbolizing();
    }
}

/// `leaktrace-COMM-PID-UTC.leaktrace`, with nothing in COMM that a shell or a path minds.
pub(crate) fn default_file(comm: &str, pid: u32) -> PathBuf {
    let comm: String = comm
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let utc = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("leaktrace-{comm}-{pid}-{utc}.leaktrace"))
}
