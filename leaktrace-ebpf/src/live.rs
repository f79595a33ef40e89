//! Live objects and the totals of their sites.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{
    KIND_GO_HEAP, Ktime, LIVE_OBJECTS, LIVE_REMOVED, LiveObject, SiteCounters, SiteKey, StackId,
};

use crate::{
    filter::key,
    loss::{self, Loss, add},
    maps::{COUNTERS, LIVE, LIVE_STATE},
};

/// Flag of an insertion: it fails where the key is there already, with the error after it.
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// An object of `size` bytes was allocated at `address`. The Go runtime counts those of its heap, so that
/// they are known where there is no room to follow them; of others none is counted that is not followed,
/// since its free would not be.
#[inline(always)]
pub fn born(address: u64, site: SiteKey, size: u64) {
    let object = LiveObject {
        stack: site.stack,
        // SAFETY: no arguments, no preconditions.
        born: Ktime(unsafe { bpf_ktime_get_ns() }),
        size,
        class: site.class,
        kind: site.kind,
    };
    if !insert(key(address), &object) && site.kind != KIND_GO_HEAP {
        return;
    }
    count_allocation(site, size);
}

/// The object at `address`, which `site` allocated with `size` bytes, was freed.
#[inline(always)]
pub fn freed(address: u64, site: SiteKey, size: u64) {
    if !remove(key(address)) {
        loss::count(Loss::FreeOfUnseen);
    }
    count_free(site, size);
}

/// Takes the object at `address` out of the live set, if it is there; its free is not counted yet.
#[inline(always)]
pub fn take(address: u64) -> Option<LiveObject> {
    let key = key(address);
    // SAFETY: the map is preallocated: its values stay readable. Who frees a block owns it, so that
    // nobody else writes this one.
    let object = *unsafe { LIVE.get(key) }?;
    remove(key).then_some(object)
}

/// Puts back what [`take`] has taken.
#[inline(always)]
pub fn put_back(address: u64, object: &LiveObject) {
    insert(key(address), object);
}

/// How many objects live.
#[inline(always)]
pub fn objects() -> u64 {
    let count = |state| LIVE_STATE.get(state).copied().unwrap_or(0);
    count(LIVE_OBJECTS).saturating_sub(count(LIVE_REMOVED))
}

/// Whether there was room for the object. One that is at its address already has died unseen.
#[inline(always)]
fn insert(key: u64, object: &LiveObject) -> bool {
    match LIVE.insert(key, object, BPF_NOEXIST) {
        Ok(()) => count_objects(1),
        Err(EEXIST) if LIVE.insert(key, object, 0).is_ok() => {}
        Err(_) => {
            loss::count(Loss::LiveMapFull);
            return false;
        }
    }
    true
}

/// Whether the object was there.
#[inline(always)]
fn remove(key: u64) -> bool {
    let is_removed = LIVE.remove(key).is_ok();
    if is_removed {
        count_objects(-1);
    }
    is_removed
}

#[inline(always)]
fn count_objects(change: i64) {
    if let Some(objects) = LIVE_STATE.get_ptr_mut(LIVE_OBJECTS) {
        add(objects, change as u64);
    }
}

/// Counts the free of an object that [`take`] has taken.
#[inline(always)]
pub fn count_free_of(object: &LiveObject) {
    let site = SiteKey {
        stack: object.stack,
        kind: object.kind,
        class: object.class,
    };
    count_free(site, object.size);
}

/// A site whose objects are not sampled by size.
#[inline(always)]
pub fn site(stack: StackId, kind: u32) -> SiteKey {
    SiteKey {
        stack,
        kind,
        class: 0,
    }
}

/// Adds one free to the totals of a site.
#[inline(always)]
pub fn count_free(site: SiteKey, size: u64) {
    with_counters(site, |counters| {
        add(&mut counters.frees, 1);
        add(&mut counters.free_bytes, size);
    });
}

/// Adds one allocation to the totals of a site.
#[inline(always)]
pub fn count_allocation(site: SiteKey, size: u64) {
    with_counters(site, |counters| {
        add(&mut counters.allocs, 1);
        add(&mut counters.alloc_bytes, size);
    });
}

#[inline(always)]
fn with_counters(key: SiteKey, update: impl FnOnce(&mut SiteCounters)) {
    let counters = match COUNTERS.get_ptr_mut(key) {
        Some(counters) => Some(counters),
        None => {
            // An error here means that another CPU was first, or that the map is full: the second
            // look-up tells.
            let _ = COUNTERS.insert(key, SiteCounters::default(), BPF_NOEXIST);
            COUNTERS.get_ptr_mut(key)
        }
    };
    match counters {
        // SAFETY: a value of this CPU in a preallocated map; fields change only by atomic adds.
        Some(counters) => update(unsafe { &mut *counters }),
        None => loss::count(Loss::CounterMapFull),
    }
}
