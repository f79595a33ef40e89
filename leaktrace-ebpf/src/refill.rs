//! Our own sampling of the Go heap, for processes whose runtime does not sample.
//!
//! The probes stand on the allocator's slow path, behind the refill of a span: one hit in thousands of
//! bytes, not in one object. Most hits end after a random number; the others read the span and walk
//! the goroutine's stack straight into the record. What became of the object is for user space to
//! find out, from the collector's own bits.

use aya_ebpf::{
    Global,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_probe_read_user,
    },
    programs::ProbeContext,
};
use leaktrace_common::{
    GO_LARGE, GO_REFILL, GoSample, Ktime, MAX_FRAMES, STACK_BROKEN, STACK_TRUNCATED,
    STACK_UNREADABLE,
};

use crate::{
    go::{read, registers},
    loss::{self, Loss, add},
    maps::{GO_HITS, GO_SAMPLING, SAMPLES},
};

/// Most bytes of a span for objects of up to 32 KiB (runtime/sizeclasses.go, Go 1.19 to 1.27: ten
/// pages of 8 KiB).
const MAX_REFILL: u64 = 10 * 8192;

/// Address of `runtime.mheap_.sweepgen`.
#[unsafe(no_mangle)]
static GO_SWEEPGEN: Global<u64> = Global::new(0);
/// Offset in `struct pt_regs` of the register that holds the span behind a refill.
#[unsafe(no_mangle)]
static GO_SPAN_REGISTER: Global<u32> = Global::new(0);
/// Offsets in `runtime.mspan`, by Go version.
#[unsafe(no_mangle)]
static GO_SPAN_START: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GO_SPAN_NELEMS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GO_SPAN_ALLOC_COUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GO_SPAN_ELEMSIZE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GO_SPAN_CLASS: Global<u32> = Global::new(0);

/// The free slot's index is in RAX, the span in another register.
#[inline(always)]
pub fn try_refill(ctx: &ProbeContext) -> Result<(), Loss> {
    let Some(draw) = draw(GO_REFILL).filter(|draw| *draw < MAX_REFILL) else {
        return Ok(());
    };
    let regs = registers(ctx);
    let span = span_register(regs)?;
    let size = read::<u64>(span, &GO_SPAN_ELEMSIZE)?;
    let slots = read::<u16>(span, &GO_SPAN_NELEMS)?;
    let used = read::<u16>(span, &GO_SPAN_ALLOC_COUNT)?;
    let stands_for = u64::from(slots.saturating_sub(used)) * size;
    if draw >= stands_for {
        return Ok(());
    }
    let index = regs.rax & 0xffff;
    take(GO_REFILL, regs, span, index * size, size, stands_for)
}

/// The span is in RBX, the second argument of the `(*spanSet).push` that is about to be called.
#[inline(always)]
pub fn try_large(ctx: &ProbeContext) -> Result<(), Loss> {
    let Some(draw) = draw(GO_LARGE) else {
        return Ok(());
    };
    let regs = registers(ctx);
    let span = regs.rbx;
    let size = read::<u64>(span, &GO_SPAN_ELEMSIZE)?;
    if draw >= size {
        return Ok(());
    }
    take(GO_LARGE, regs, span, 0, size, size)
}

/// Counts a hit; gives a random number below the rate, which takes the hit if it lies below the bytes
/// that the hit stands for. `None`: nothing is sampled now.
#[inline(always)]
fn draw(kind: u32) -> Option<u64> {
    add(GO_HITS.get_ptr_mut(kind)?, 1);
    let rate = GO_SAMPLING.get(kind)?.rate;
    // SAFETY: no arguments, no preconditions.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    (rate > 0).then_some((random * rate) >> 32)
}

#[inline(always)]
fn take(
    kind: u32,
    regs: &pt_regs,
    span: u64,
    offset: u64,
    size: u64,
    stands_for: u64,
) -> Result<(), Loss> {
    const NO_WAKEUP: u64 = 1;
    let start = read::<u64>(span, &GO_SPAN_START)?;
    let class = read::<u8>(span, &GO_SPAN_CLASS)?;
    let sweepgen = GO_SWEEPGEN.load() as *const u32;
    // SAFETY: the helper copies from the target's memory and fails rather than faults.
    let sweepgen =
        unsafe { bpf_probe_read_user(sweepgen) }.map_err(|_| Loss::ArgumentUnreadable)?;
    let Some(sampling) = GO_SAMPLING.get(kind) else {
        return Ok(());
    };
    let (rate, share) = (sampling.rate, sampling.share);
    let mut slot = SAMPLES.reserve::<GoSample>(0).ok_or(Loss::SampleRingFull)?;
    let sample = slot.as_mut_ptr();
    // SAFETY: the ring buffer gave this program memory for one record, and nobody else has it. All
    // fields are integers; every one is written, but for frames that `len` leaves out.
    unsafe {
        (*sample).born = Ktime(bpf_ktime_get_ns());
        (*sample).address = start + offset;
        (*sample).span = span;
        (*sample).size = size;
        (*sample).stands_for = stands_for;
        (*sample).rate = rate;
        (*sample).share = share;
        (*sample).sweepgen = sweepgen;
        (*sample).thread = bpf_get_current_pid_tgid() as u32;
        (*sample).reserved = 0;
        let (len, flags) = walk(&mut (*sample).frames, regs.rip, regs.rbp);
        (*sample).len = len as u16;
        (*sample).size_class = u16::from(class >> 1);
        (*sample).flags = flags;
        if flags & STACK_TRUNCATED != 0 {
            loss::count(Loss::StackTruncated);
        }
    }
    slot.submit(NO_WAKEUP);
    Ok(())
}

/// By frame pointers: Go sets them up in every frame, and the probes stand behind that.
#[inline(always)]
fn walk(frames: &mut [u64; MAX_FRAMES], ip: u64, bp: u64) -> (u32, u32) {
    frames[0] = ip;
    let (mut len, mut bp) = (1, bp);
    for _ in 1..MAX_FRAMES {
        // SAFETY: the helper copies from the target's memory and fails rather than faults.
        let Ok((next, ret)) = (unsafe { bpf_probe_read_user(bp as *const (u64, u64)) }) else {
            return (len as u32, if bp == 0 { 0 } else { STACK_UNREADABLE });
        };
        if ret == 0 {
            return (len as u32, 0);
        }
        frames[len & (MAX_FRAMES - 1)] = ret;
        len += 1;
        if next <= bp {
            return (len as u32, if next == 0 { 0 } else { STACK_BROKEN });
        }
        bp = next;
    }
    (len as u32, STACK_TRUNCATED)
}

/// The register that holds the span.
#[inline(always)]
fn span_register(regs: *const pt_regs) -> Result<u64, Loss> {
    let register = regs as u64 + u64::from(GO_SPAN_REGISTER.load());
    // SAFETY: the helper copies from kernel memory and fails rather than faults.
    unsafe { bpf_probe_read_kernel(register as *const u64) }.map_err(|_| Loss::ArgumentUnreadable)
}
