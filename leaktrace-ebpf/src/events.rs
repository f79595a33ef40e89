//! Records that must keep their order go through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{EVENT_EXEC, Ktime, VmEvent};

use crate::{loss::Loss, maps::EVENTS};

/// Do not wake the reader: it comes by often enough.
const NO_WAKEUP: u64 = 1;

/// Puts `event` into the ring buffer, with the present as the time of its return.
#[inline(always)]
pub fn send(event: VmEvent) -> Result<(), Loss> {
    let mut slot = EVENTS.reserve::<VmEvent>(0).ok_or(Loss::RingFull)?;
    slot.write(VmEvent {
        // SAFETY: no arguments, no preconditions.
        returned: Ktime(unsafe { bpf_ktime_get_ns() }),
        ..event
    });
    slot.submit(NO_WAKEUP);
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
