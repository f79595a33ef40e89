//! Threads that change an address space at the same time, and the kernel that serves them.

use super::*;

/// A call of one thread: entered, perhaps carried out, not yet returned.
struct Call {
    event: VmEvent,
    done: bool,
    /// Site of the mapping it is about.
    mapping: u64,
}

/// A kernel with first-fit placement, and threads under way in it.
pub(super) struct Race {
    pub(super) replay: Replay,
    clock: u64,
    sites: u64,
    /// Page → site of its bytes, as the kernel has it.
    kernel: BTreeMap<u64, u64>,
    /// Mappings whose address a thread holds and nobody is changing: (page, pages).
    owned: Vec<(u64, u64)>,
    calls: Vec<Call>,
}

impl Default for Race {
    fn default() -> Self {
        let (kernel, owned, calls) = Default::default();
        Self {
            replay: Replay::new(),
            clock: 0,
            sites: 0,
            kernel,
            owned,
            calls,
        }
    }
}

impl Race {
    pub(super) fn step(&mut self, choice: u32) {
        self.clock += 1;
        let (what, pick) = (choice % 3, (choice / 3) as usize);
        match what {
            0 if self.calls.len() < 4 => self.enter(pick),
            1 => {
                let waiting: Vec<_> = (0..self.calls.len())
                    .filter(|&i| !self.calls[i].done)
                    .collect();
                if !waiting.is_empty() {
                    self.carry_out(waiting[pick % waiting.len()]);
                }
            }
            _ => {
                let done: Vec<_> = (0..self.calls.len())
                    .filter(|&i| self.calls[i].done)
                    .collect();
                if !done.is_empty() {
                    self.give_back(done[pick % done.len()]);
                }
            }
        }
    }

    fn enter(&mut self, pick: usize) {
        self.sites += 1;
        let site = self.sites;
        let pages = 1 + pick as u64 / 8 % 4;
        let event = if self.owned.is_empty() || pick.is_multiple_of(2) {
            mmap(site, 0, pages)
        } else {
            let (page, len) = self.owned.swap_remove(pick / 32 % self.owned.len());
            if pick.is_multiple_of(3) {
                mremap(site, (page, len), (page, pages), 1)
            } else {
                munmap(page, len)
            }
        };
        let event = VmEvent {
            entered: Ktime(self.clock),
            ..event
        };
        self.calls.push(Call {
            event,
            done: false,
            mapping: site,
        });
    }

    /// The kernel changes the address space.
    fn carry_out(&mut self, index: usize) {
        let call = &mut self.calls[index];
        call.done = true;
        let pages = call.event.len / PAGE;
        let page = |addr: u64| (addr - BASE) / PAGE;
        let free = |kernel: &BTreeMap<u64, u64>, pages: u64| {
            (0..)
                .find(|&p| kernel.range(p..p + pages).next().is_none())
                .unwrap()
        };
        match call.event.event {
            EVENT_MMAP => {
                let place = free(&self.kernel, pages);
                call.event.addr = BASE + place * PAGE;
                self.kernel
                    .extend((place..place + pages).map(|p| (p, call.mapping)));
            }
            EVENT_MUNMAP => {
                let place = page(call.event.addr);
                self.kernel
                    .retain(|p, _| !(place..place + pages).contains(p));
            }
            _ => {
                let (old, old_pages) = (page(call.event.old_addr), call.event.old_len / PAGE);
                let room = old + old_pages..old + pages.max(old_pages);
                let place = if self.kernel.range(room).next().is_none() {
                    old
                } else {
                    free(&self.kernel, pages)
                };
                let content: Vec<_> = (old..old + old_pages)
                    .filter_map(|p| self.kernel.remove(&p))
                    .collect();
                let added = std::iter::repeat(call.mapping);
                let content = content.into_iter().chain(added).take(pages as usize);
                self.kernel.extend((place..).zip(content));
                call.event.addr = BASE + place * PAGE;
            }
        }
    }

    /// The call returns: its event is sent, then the thread knows the address.
    fn give_back(&mut self, index: usize) {
        let call = self.calls.swap_remove(index);
        let event = VmEvent {
            returned: Ktime(self.clock),
            ..call.event
        };
        self.replay.event(event);
        if event.event != EVENT_MUNMAP {
            self.owned
                .push(((event.addr - BASE) / PAGE, event.len / PAGE));
        }
    }

    pub(super) fn finish(&mut self) {
        while !self.calls.is_empty() {
            self.clock += 1;
            if !self.calls[0].done {
                self.carry_out(0);
            }
            self.clock += 1;
            self.give_back(0);
        }
    }

    pub(super) fn truth(&self) -> BTreeMap<u64, i64> {
        let mut truth = BTreeMap::new();
        for &site in self.kernel.values() {
            *truth.entry(site).or_default() += PAGE as i64;
        }
        truth
    }
}
