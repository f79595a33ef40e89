//! Windows on native allocators: what came and went in each goes through [`Turnover`].

use leaktrace_common::{BlockEvent, KIND_MALLOC, NO_SIZE, SiteKey, StackId, loss};

use super::{Drain, Kernel, sites::Sites};
use crate::{
    capture::schema,
    loader::LoadError,
    loss as causes,
    turnover::{Event, Turnover, What, Window},
};

/// Follows blocks from window to window.
pub(super) struct Blocks {
    turnover: Turnover,
    /// Most sites that are told apart.
    sites: usize,
    discarded: u64,
    unseparated: u64,
    /// Losses of the kernel side by now, after which a window is not whole.
    lost: u64,
}

impl Blocks {
    /// At most so many blocks are followed and so many sites told apart.
    pub(super) fn new(blocks: usize, sites: usize) -> Self {
        Self {
            turnover: Turnover::new(blocks),
            sites,
            discarded: 0,
            unseparated: 0,
            lost: 0,
        }
    }

    /// Takes in a window that is closed; gives whether it was whole. One of which anything was lost counts
    /// for nothing: the blocks whose frees were lost would seem to live.
    pub(super) fn window(
        &mut self,
        window: Window,
        kernel: &mut Kernel,
        sites: &mut Sites,
    ) -> Result<bool, LoadError> {
        let events = kernel.take_blocks();
        let losses = kernel.losses()?;
        let lost = [
            loss::BLOCK_RING_FULL,
            loss::THREADS_FULL,
            loss::ARGUMENT_UNREADABLE,
        ];
        let lost = lost.iter().map(|&cause| losses[cause as usize]).sum();
        if std::mem::replace(&mut self.lost, lost) != lost {
            self.discarded += 1;
            return Ok(false);
        }
        let mut events: Vec<_> = events
            .iter()
            .map(|event| Event {
                at_ns: event.at.0,
                thread: event.thread,
                address: event.address,
                what: match event.size {
                    NO_SIZE => What::Death {
                        class: event.class.into(),
                    },
                    bytes => What::Birth {
                        site: self.site(event, kernel, sites),
                        bytes,
                    },
                },
            })
            .collect();
        self.turnover.window(window, &mut events);
        Ok(true)
    }

    fn site(&mut self, event: &BlockEvent, kernel: &Kernel, sites: &mut Sites) -> u32 {
        let mut site = SiteKey {
            stack: event.stack,
            kind: KIND_MALLOC,
            class: event.class,
        };
        if sites.len() >= self.sites && !sites.has(&site) {
            self.unseparated += 1;
            site.stack = StackId(0);
        }
        sites.in_windows(site, kernel)
    }

    /// What was shown since the last call.
    pub(super) fn take(&mut self) -> schema::Windows {
        let mut shown = schema::Windows::from(self.turnover.take());
        shown.discarded = std::mem::take(&mut self.discarded);
        shown
    }

    /// What an allocation and a free cost in the program, in nanoseconds, as far as that is known.
    pub(super) fn costs_ns(&self) -> [f64; 2] {
        self.turnover.costs_ns()
    }

    /// What could not be kept since the attach, by cause.
    pub(super) fn losses(&self) -> [(&'static str, u64); 2] {
        [
            (causes::BLOCKS_NOT_FOLLOWED, self.turnover.not_followed()),
            (causes::BLOCKS_UNSEPARATED, self.unseparated),
        ]
    }
}

impl Drain {
    /// From here on native allocators are traced in windows; at most so many blocks are followed from one to
    /// the next and so many sites told apart.
    pub fn in_windows(&mut self, blocks: usize, sites: usize) {
        self.following.malloc = false;
        self.blocks = Some(Blocks::new(blocks, sites));
    }

    /// Takes in a window that is closed; gives whether it was whole.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn window(&mut self, window: Window) -> Result<bool, LoadError> {
        match &mut self.blocks {
            Some(blocks) => blocks.window(window, &mut self.kernel, &mut self.sites),
            None => Ok(false),
        }
    }

    /// What an allocation and a free cost the program in a window, in nanoseconds; none if there are no
    /// windows.
    pub fn costs_ns(&self) -> Option<[f64; 2]> {
        self.blocks.as_ref().map(Blocks::costs_ns)
    }
}
