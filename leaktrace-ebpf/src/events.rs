//! Records that must keep their order go through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{EVENT_EXEC, Ktime, VmEvent};

use crate::{loss::Loss, maps::EVENTS};

/// Do not wake the reader: it comes by often enough.
const NO_WAKEUP: u64 = 1;
/// Wake the reader, whatever it has read.
pub const WAKE_UP: u64 = 2;

/// Puts `event` into the ring buffer, with the present as the time of its return.
#[inline(always)]
pub fn send(event: VmEvent) -> Result<(), Loss> {
    send_and(NO_WAKEUP, event)
}

/// The same, and whether the reader is woken.
#[inline(always)]
pub fn send_and(flags: u64, event: VmEvent) -> Result<(), Loss> {
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
