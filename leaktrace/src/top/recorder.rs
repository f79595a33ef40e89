//! The recorder that hands everything to the analyst.

use std::{fs::File, sync::mpsc::Sender};

use anyhow::Result;

use super::analyst::Input;
use crate::{
    capture::schema,
    loader::Runs,
    plan::Plan,
    record::{Ending, Now, Recorder},
    symbolize,
    target::Target,
};

/// An interval, and what the analyst needs for it.
pub(super) struct Interval {
    pub(super) interval: schema::Interval,
    /// The files of the interval's modules, in their order, where they could be opened.
    pub(super) files: Vec<Option<File>>,
    pub(super) events: u64,
    pub(super) runs: Option<Runs>,
    pub(super) limits: Vec<schema::Limit>,
}

/// Sends what is recorded to the analyst, who may be gone: the screen then ends the recording.
pub(super) struct ToAnalyst(Sender<Input>);

impl ToAnalyst {
    pub(super) fn new(analyst: Sender<Input>) -> Self {
        Self(analyst)
    }

    fn send(&self, input: Input) {
        let _ = self.0.send(input);
    }

    /// The recording is over.
    pub(super) fn end(self, ending: Ending) {
        self.send(Input::End(ending.close));
    }
}

impl Recorder for ToAnalyst {
    fn open(&mut self, _target: &Target) -> Result<()> {
        Ok(())
    }

    fn header(&mut self, header: schema::Header) -> Result<()> {
        self.send(Input::Header(Box::new(header)));
        Ok(())
    }

    fn interval(&mut self, interval: schema::Interval, now: &Now<'_>) -> Result<()> {
        let files = interval.modules.iter().map(|module| {
            let module = symbolize::Module::from(module);
            File::open(now.code.open_path(&module)?).ok()
        });
        let files = files.collect();
        self.send(Input::Interval(Box::new(Interval {
            interval,
            files,
            events: now.events,
            runs: now.runs,
            limits: now.limits.to_vec(),
        })));
        Ok(())
    }

    fn attached(&mut self, _target: &Target, _plan: &Plan) {}

    fn note(&mut self, text: &str) {
        self.send(Input::Note(text.to_owned()));
    }

    fn detached(&mut self) {}
}
