//! How sampling of native allocators' blocks was made coarser as the live-object map filled.

use super::Kernel;
use crate::loader::LoadError;

/// From when on blocks were sampled more coarsely, since as many lived as there was room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coarsened {
    /// Since the window opened: the end of the interval in which it happened.
    pub t_ns: u64,
    /// Bytes for each sample from then on.
    pub sample_bytes: u64,
}

/// The steps so far.
#[derive(Default)]
pub(super) struct Steps {
    level: u32,
    pub(super) taken: Vec<Coarsened>,
}

impl Steps {
    /// Looks whether there is another one at the end of an interval.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub(super) fn look(&mut self, kernel: &Kernel, t_ns: u64) -> Result<(), LoadError> {
        let (level, sample_bytes) = kernel.malloc_level()?;
        if level > self.level {
            self.level = level;
            self.taken.push(Coarsened { t_ns, sample_bytes });
        }
        Ok(())
    }
}
