//! The capture's own numbering of allocation sites.

use std::collections::HashMap;

use leaktrace_common::{
    GoSample, KIND_BRK, KIND_GO_HEAP, KIND_MALLOC, KIND_MMAP, STACK_BROKEN, STACK_LEAF_CALLER,
    STACK_NO_RULE, STACK_TRUNCATED, STACK_UNREADABLE, SiteKey, StackId,
};

use super::Kernel;
use crate::{capture::schema, inventory::Bucket};

/// Sites seen so far, and those that the capture does not have yet.
#[derive(Default)]
pub(super) struct Sites {
    ids: HashMap<SiteKey, u32>,
    fresh: Vec<schema::Site>,
}

impl Sites {
    /// The site whose stack the kernel side walked; `kernel` is asked for that of a new one.
    pub(super) fn walked(&mut self, site: SiteKey, kernel: &Kernel) -> u32 {
        let (object_size, sample_bytes) = kernel.sampled_by(site);
        let sampled = match object_size {
            0 => (schema::Sampling::Runtime, 0, 0),
            _ => (schema::Sampling::Bytes, object_size, sample_bytes),
        };
        self.walked_as(site, sampled, kernel)
    }

    /// The same for a site of which windows show what comes and goes.
    pub(super) fn in_windows(&mut self, site: SiteKey, kernel: &Kernel) -> u32 {
        let sampled = (schema::Sampling::Windows, u64::from(site.class), 0);
        self.walked_as(site, sampled, kernel)
    }

    /// Sites seen so far.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it is known.
    pub(super) fn has(&self, site: &SiteKey) -> bool {
        self.ids.contains_key(site)
    }

    /// Its number, if it is known.
    pub(super) fn number(&self, site: &SiteKey) -> Option<u32> {
        self.ids.get(site).copied()
    }

    fn walked_as(
        &mut self,
        site: SiteKey,
        (sampling, object_size, sample_bytes): (schema::Sampling, u64, u64),
        kernel: &Kernel,
    ) -> u32 {
        let described = || match kernel.stack(site.stack) {
            Some(record) => schema::Site {
                pcs: record
                    .frames
                    .iter()
                    .take(record.len as usize)
                    .copied()
                    .collect(),
                truncated: record.flags & STACK_TRUNCATED != 0,
                incomplete: incomplete(record.flags).to_owned(),
                leaf_caller: record.flags & STACK_LEAF_CALLER != 0,
                ..schema::Site::default()
            },
            None => schema::Site {
                incomplete: "the stack could not be kept: the stack map was full".to_owned(),
                ..schema::Site::default()
            },
        };
        self.intern(site, || schema::Site {
            object_size,
            sampling: sampling.into(),
            sample_bytes,
            ..described()
        })
    }

    /// The site of a Go profile bucket.
    pub(super) fn bucket(&mut self, bucket: &Bucket) -> u32 {
        self.intern(go_heap(StackId(bucket.address)), || schema::Site {
            pcs: bucket.pcs.clone(),
            object_size: bucket.object_size,
            logical: true,
            ..schema::Site::default()
        })
    }

    /// The site of the Go profile bucket at that address. If the profile could not be read since
    /// the bucket was made, the site has no frames and says so.
    pub(super) fn of_bucket(&mut self, address: StackId) -> u32 {
        self.intern(go_heap(address), || schema::Site {
            incomplete: "the runtime's profile bucket could not be read".to_owned(),
            logical: true,
            ..schema::Site::default()
        })
    }

    /// The site of one of our own samples, which has this name.
    pub(super) fn sampled(&mut self, name: StackId, sample: &GoSample) -> u32 {
        self.intern(go_heap(name), || schema::Site {
            pcs: sample
                .frames
                .iter()
                .take(usize::from(sample.len))
                .copied()
                .collect(),
            object_size: sample.size,
            truncated: sample.flags & STACK_TRUNCATED != 0,
            incomplete: incomplete(sample.flags).to_owned(),
            sampling: schema::Sampling::Refill.into(),
            ..schema::Site::default()
        })
    }

    /// The sites that are new since the last call.
    pub(super) fn take_fresh(&mut self) -> Vec<schema::Site> {
        std::mem::take(&mut self.fresh)
    }

    fn intern(&mut self, site: SiteKey, describe: impl FnOnce() -> schema::Site) -> u32 {
        if let Some(&id) = self.ids.get(&site) {
            return id;
        }
        let id = self.ids.len() as u32 + 1;
        self.ids.insert(site, id);
        self.fresh.push(schema::Site {
            id,
            kind: schema_kind(site.kind).into(),
            ..describe()
        });
        id
    }
}

fn go_heap(stack: StackId) -> SiteKey {
    SiteKey {
        stack,
        kind: KIND_GO_HEAP,
        class: 0,
    }
}

fn schema_kind(kind: u32) -> schema::Kind {
    match kind {
        KIND_GO_HEAP => schema::Kind::GoHeap,
        KIND_MALLOC => schema::Kind::Malloc,
        KIND_MMAP => schema::Kind::Mmap,
        KIND_BRK => schema::Kind::Brk,
        _ => schema::Kind::Unspecified,
    }
}

fn incomplete(flags: u32) -> &'static str {
    if flags & STACK_UNREADABLE != 0 {
        "the frame-pointer chain ended in memory that could not be read: code built without frame \
         pointers"
    } else if flags & STACK_BROKEN != 0 {
        "the frame pointer leads nowhere, or to another stack: code built without frame pointers, and \
         without call frame information, or before that was read"
    } else if flags & STACK_NO_RULE != 0 {
        "the call frame information of the outermost frame is of a form that is not followed"
    } else {
        ""
    }
}
