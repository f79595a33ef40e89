//! Records that must keep their order go through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{EVENT_EXEC, EVENT_GC, Ktime, VmEvent};

use crate::{
    loss::Loss,
    maps::{EVENTS, LAST_WAKEUP},
};

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
/// does: the reader should not wait. A small heap may be collected hundreds of times a second: then the
/// reader is woken for some of them only, or it would take the processor from the target.
#[inline(always)]
pub fn collection() -> Result<(), Loss> {
    const PAUSE_NS: u64 = 5_000_000;
    // SAFETY: no arguments, no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let flags = match LAST_WAKEUP.get_ptr_mut(0) {
        // SAFETY: a value of a map, aligned and live; a race costs one wakeup more or less.
        Some(last) if now - unsafe { last.read_volatile() } >= PAUSE_NS => {
            // SAFETY: as above.
            unsafe { last.write_volatile(now) };
            FORCE_WAKEUP
        }
        _ => NO_WAKEUP,
    };
    let event = VmEvent {
        event: EVENT_GC,
        ..VmEvent::default()
    };
    submit(event, flags)
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
