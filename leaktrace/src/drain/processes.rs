//! Processes that the target has made and that are followed.
//!
//! Their blocks are in the live set under marked addresses. When such a process ends, or becomes another
//! program, its memory is gone, and its blocks leave the live set as if they had been freed.

use std::collections::HashMap;

use leaktrace_common::{EVENT_FORK, Ktime, LiveObject, SiteCounters, SiteKey, VmEvent};

use super::{Drain, objects::site_of};
use crate::loader::LoadError;

/// What a followed process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It made another one.
    Made {
        /// Id of the new one.
        pid: i32,
        /// What its blocks are told by.
        number: u64,
        /// When.
        at: Ktime,
    },
    /// It became another program.
    Exec {
        /// Its id.
        pid: i32,
    },
}

/// What has not been acted on yet, and what the ended processes had.
#[derive(Default)]
pub(super) struct Processes {
    changes: Vec<Change>,
    ended: HashMap<SiteKey, SiteCounters>,
}

impl Processes {
    /// Takes a record of the kernel side.
    pub(super) fn take(&mut self, event: &VmEvent) {
        let pid = event.addr as i32;
        self.changes.push(match event.event {
            EVENT_FORK => Change::Made {
                pid,
                number: event.len,
                at: event.returned,
            },
            _ => Change::Exec { pid },
        });
    }

    /// Adds the frees of blocks that went with their processes.
    pub(super) fn add_ended(&self, totals: &mut HashMap<SiteKey, SiteCounters>) {
        for (site, ended) in &self.ended {
            let totals = totals.entry(*site).or_default();
            totals.frees += ended.frees;
            totals.free_bytes += ended.free_bytes;
        }
    }

    fn died(&mut self, object: &LiveObject) {
        let ended = self.ended.entry(site_of(object)).or_default();
        ended.frees += 1;
        ended.free_bytes += object.size;
    }
}

impl Drain {
    /// What followed processes did since the last call, in order.
    pub fn take_process_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.processes.changes)
    }

    /// The memory of these processes, ids and numbers, is gone.
    ///
    /// # Errors
    ///
    /// A map cannot be read or written.
    pub fn processes_ended(&mut self, ended: &[(i32, u64)]) -> Result<(), LoadError> {
        if ended.is_empty() {
            return Ok(());
        }
        let Self {
            kernel, processes, ..
        } = self;
        let numbers = ended.iter().map(|(_, number)| *number).collect();
        kernel.forget_blocks(&numbers, |object| processes.died(object))?;
        ended
            .iter()
            .try_for_each(|&(pid, number)| kernel.forget_process(pid, number))
    }

    /// A process got no probes, so that no block of it is known.
    ///
    /// # Errors
    ///
    /// A map cannot be written.
    pub fn process_not_followed(&mut self, pid: i32, number: u64) -> Result<(), LoadError> {
        self.kernel.forget_process(pid, number)
    }
}
