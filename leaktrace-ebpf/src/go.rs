//! The Go runtime's heap sampler and its collections.
//!
//! `setprofilebucket(p, b)` ties a sampled object to the bucket that holds its stack; the runtime
//! has walked the stack already, inlined calls included, so that nothing is walked here and a
//! site's identity is the one Go's own profile uses. `freeSpecial(s, p, size)` ends it: `s` leads
//! to the same bucket. `newproc1(fn, callergp, callerpc, …)` makes a goroutine, `gdestroy(gp)` (Go 1.22
//! and later) or `goexit0(gp)` ends it. All take their arguments in RAX, RBX, RCX (Go's ABIInternal); the plan
//! places the probes where these registers still hold them.

use aya_ebpf::{Global, helpers::bpf_probe_read_user, programs::ProbeContext};
use leaktrace_common::{EVENT_GC, KIND_GO_HEAP, KIND_GOROUTINE, StackId, VmEvent};

use crate::{
    events, live,
    loss::{Loss, add},
    maps::GC_CYCLES,
};

/// Offset of `kind` in `runtime.special`, by Go version.
#[unsafe(no_mangle)]
static GO_SPECIAL_KIND: Global<u32> = Global::new(0);
/// Value of `runtime._KindSpecialProfile`, by Go version.
#[unsafe(no_mangle)]
static GO_KIND_PROFILE: Global<u32> = Global::new(0);
/// Offset of `b` in `runtime.specialprofile`, by Go version.
#[unsafe(no_mangle)]
static GO_SPECIAL_BUCKET: Global<u32> = Global::new(0);
/// Offset of `size` in `runtime.bucket`.
#[unsafe(no_mangle)]
static GO_BUCKET_SIZE: Global<u32> = Global::new(0);
/// Offset of `gopc` in `runtime.g`, by Go version.
#[unsafe(no_mangle)]
static GO_G_GOPC: Global<u32> = Global::new(0);

#[inline(always)]
pub fn try_sample(ctx: &ProbeContext) -> Result<(), Loss> {
    let (address, bucket) = (registers(ctx).rax, registers(ctx).rbx);
    let size = read::<u64>(bucket, &GO_BUCKET_SIZE)?;
    live::born(address, live::site(StackId(bucket), KIND_GO_HEAP), size);
    Ok(())
}

#[inline(always)]
pub fn try_free(ctx: &ProbeContext) -> Result<(), Loss> {
    let (special, address) = (registers(ctx).rax, registers(ctx).rbx);
    if u32::from(read::<u8>(special, &GO_SPECIAL_KIND)?) != GO_KIND_PROFILE.load() {
        return Ok(());
    }
    let bucket = read::<u64>(special, &GO_SPECIAL_BUCKET)?;
    let size = read::<u64>(bucket, &GO_BUCKET_SIZE)?;
    live::freed(address, live::site(StackId(bucket), KIND_GO_HEAP), size);
    Ok(())
}

#[inline(always)]
pub fn try_created(ctx: &ProbeContext) -> Result<(), Loss> {
    let created_by = StackId(registers(ctx).rcx);
    live::count_allocation(live::site(created_by, KIND_GOROUTINE), 0);
    Ok(())
}

#[inline(always)]
pub fn try_exited(ctx: &ProbeContext) -> Result<(), Loss> {
    let created_by = read::<u64>(registers(ctx).rax, &GO_G_GOPC)?;
    live::count_free(live::site(StackId(created_by), KIND_GOROUTINE), 0);
    Ok(())
}

#[inline(always)]
pub fn try_gc() -> Result<(), Loss> {
    let Some(cycles) = GC_CYCLES.get_ptr_mut(0) else {
        return Ok(());
    };
    add(cycles, 1);
    events::send(VmEvent {
        event: EVENT_GC,
        ..VmEvent::default()
    })
}

#[inline(always)]
pub fn registers(ctx: &ProbeContext) -> &aya_ebpf::bindings::pt_regs {
    // SAFETY: the context of a uprobe program is the target's registers.
    unsafe { &*ctx.regs }
}

#[inline(always)]
pub fn read<T>(base: u64, offset: &Global<u32>) -> Result<T, Loss> {
    let address = base.wrapping_add(u64::from(offset.load())) as *const T;
    // SAFETY: the helper copies from the target's memory and fails rather than faults.
    unsafe { bpf_probe_read_user(address) }.map_err(|_| Loss::ArgumentUnreadable)
}
