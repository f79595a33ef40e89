//! Reads the kernel's maps and ring buffer, and turns an interval into a block of the capture.
//!
//! Contract: memory is bounded by the sizes of the kernel's maps; every loss is counted by cause,
//! on both sides of the boundary. With `loader` this is the only module that knows aya.

mod kernel;
mod objects;
mod sites;

use std::collections::BTreeMap;

use leaktrace_common::{EVENT_EXEC, EVENT_GC, StackId};

use crate::{
    address_space::AddressSpace,
    capture::schema,
    inventory::{Buckets, BucketsError},
    loader::{LoadError, Loaded, MapSizes},
    target::{AddressMap, Target},
};

pub use self::kernel::Kernel;
use self::{objects::Objects, sites::Sites};

/// Drains one run.
pub struct Drain {
    kernel: Kernel,
    sites: Sites,
    objects: Objects,
    space: AddressSpace,
    buckets: Option<Buckets>,
    bucket_counts: Vec<crate::inventory::BucketCounts>,
    unseen: SamplerCheck,
    pending: BTreeMap<u32, schema::SiteDelta>,
    losses: BTreeMap<String, u64>,
    gc_cycles: u32,
    events: u64,
    exec: bool,
    index: u32,
}
