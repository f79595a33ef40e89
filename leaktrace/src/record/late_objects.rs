//! Native code that is mapped while a recording runs: plug-ins, `dlopen`.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::limit;
use crate::{
    capture::schema,
    loader::LoadError,
    plan::{
        Uprobe,
        native::{self, NativeFacts},
    },
    planning,
    target::{Target, maps::Modules},
};

/// The mappings are read so seldom that it takes at most this share of the time.
const SHARE: u32 = 100;

/// Knows which files were looked at.
pub(super) struct LateObjects {
    known: HashSet<PathBuf>,
    next: Instant,
    attached: Instant,
}

impl LateObjects {
    /// Takes what is mapped now as known: the plan was made from it.
    pub(super) fn new(target: &Target, modules: &mut Modules) -> Self {
        let objects = planning::native(target, modules).objects;
        let now = Instant::now();
        Self {
            known: objects.into_iter().map(|object| object.open_path).collect(),
            next: now,
            attached: now,
        }
    }

    /// Looks for new files and has the probes in them attached. Gives what could not be seen of them.
    ///
    /// # Errors
    ///
    /// The target is gone.
    pub(super) fn look(
        &mut self,
        target: &Target,
        modules: &mut Modules,
        mut attach: impl FnMut(&[Uprobe]) -> Result<(), LoadError>,
    ) -> Result<Vec<schema::Limit>, LoadError> {
        let started = Instant::now();
        if started < self.next {
            return Ok(Vec::new());
        }
        let NativeFacts {
            mut objects,
            uretprobes,
            sessions,
        } = planning::native(target, modules);
        objects.retain(|object| self.known.insert(object.open_path.clone()));
        let mut limits = Vec::new();
        for object in objects {
            let facts = NativeFacts {
                objects: vec![object],
                uretprobes: uretprobes.clone(),
                sessions,
            };
            let (probes, unseen) = native::probes(&facts);
            limits.extend(unseen.iter().map(|l| limit(&l.what, &l.reason)));
            let path = &facts.objects[0].path;
            match attach(&probes) {
                Ok(()) if probes.is_empty() => {}
                Ok(()) => limits.push(limit(
                    &format!("the first allocations of `{path}`"),
                    &format!(
                        "it was mapped during the recording; its {} probes are live since {:.1} s",
                        probes.len(),
                        self.attached.elapsed().as_secs_f64()
                    ),
                )),
                Err(error @ LoadError::Gone { .. }) => return Err(error),
                Err(error) => limits.push(limit(
                    &format!("the allocations of `{path}`"),
                    &format!("{:#}", anyhow::Error::new(error)),
                )),
            }
        }
        let took = started.elapsed().max(Duration::from_millis(1));
        self.next = Instant::now() + took * SHARE;
        Ok(limits)
    }
}
