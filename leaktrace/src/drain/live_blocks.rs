//! The blocks of native allocators that are alive now, one by one.

use leaktrace_common::{KIND_MALLOC, SiteKey};

use super::Drain;
use crate::{
    inventory::references::Block,
    live_heap::Sampler,
    loader::{LoadError, ThreadRegisters},
};

impl Drain {
    /// Whether every birth and death of native allocators' blocks is seen, or of a sample of them.
    pub fn follows_malloc(&self) -> bool {
        self.following.malloc
    }

    /// Gives away what reads the registers of the target's threads, if that was asked for at the attach.
    pub fn thread_registers(&mut self) -> Option<Result<ThreadRegisters, LoadError>> {
        self.kernel.registers.take()
    }

    /// Calls `visit` with every block that is followed and alive, and how many blocks it stands for; those of
    /// sites that are in no interval yet are left out.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn each_live_block(&self, mut visit: impl FnMut(Block, f64)) -> Result<(), LoadError> {
        self.kernel.for_each_live(|address, object| {
            let key = SiteKey {
                stack: object.stack,
                kind: object.kind,
                class: object.class,
            };
            if object.kind != KIND_MALLOC {
                return;
            }
            if let Some(site) = self.sites.number(&key) {
                let (size, rate) = self.kernel.sampled_by(key);
                let stands_for = match size {
                    0 => 1.0,
                    size => Sampler::Bytes { rate }.scale(size),
                };
                let block = Block {
                    address,
                    size: object.size,
                    site,
                    born: object.born.0,
                };
                visit(block, stands_for);
            }
        })
    }
}
