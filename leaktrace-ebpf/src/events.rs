//! Records that must keep their order go through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{EVENT_EXEC, EVENT_GC, Ktime, VmEvent};

use crate::{loss::Loss, maps::EVENTS};

/// Do not wake the reader: it comes by often enough.
const NO_WAKEUP: u64 = 1;
/// Wake it.
const FORCE_WAKEUP: u64 = 2;

/// Puts `event` into the ring buffer, with the present as the time of its return.
#[inline(always)]
pub fn send(event: VmEvent) -> Result<(), Loss> {
    submit(event, NO_WAKEUP)
}

/// A collection has finished marking. What it found can be read from the target until the next one
/// does: the reader should not wait.
#[inline(always)]
pub fn collection() -> Result<(), Loss> {
    let event = VmEvent {
        event: EVENT_GC,
        ..VmEvent::default()
    };
    submit(event, FORCE_WAKEUP)
}

#[inline(always)]
fn submit(event: VmEvent, flags: u64) -> Result<(), Loss> {
    let mut slot = EVENTS.reserve::<VmEvent>(0).ok_or(Loss::RingFull)?;
    slot.write(VmEvent {
        // SAFETY: no arguments, no preconditions.
        returned: Ktime(unsafe { bpf_ktime_get_ns() }),
        ..event
    });
    slot.submit(flags);
    Ok(())
}

/// The target became another program: nothing seen before holds for what it is now.
#[inline(always)]
pub fn exec() -> Result<(), Loss> {
    send(VmEvent {
        event: EVENT_EXEC,
        ..VmEvent::default()
    })
}
