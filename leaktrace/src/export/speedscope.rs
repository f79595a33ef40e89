//! speedscope's own file format (<https://www.speedscope.app/file-format-schema.json>): every value as
//! a profile of its own.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{Step, Value, escape, path, sites};
use crate::report::Report;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: String,
    exporter: String,
    active_profile_index: usize,
    shared: Shared,
    profiles: Vec<Profile>,
}

#[derive(Default, Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Clone, Serialize, PartialEq, Eq, Hash)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: i64,
    end_value: i64,
    /// Indexes of frames, outermost first.
    samples: Vec<Vec<usize>>,
    weights: Vec<i64>,
}

const PROFILES: [(&str, Value, i64); 6] = [
    ("inuse_space", Value::InuseSpace, 1),
    ("inuse_objects", Value::InuseObjects, 1),
    ("alloc_space", Value::AllocSpace, 1),
    ("alloc_objects", Value::AllocObjects, 1),
    // A weight cannot be negative: what has shrunk is a profile of its own.
    ("growth", Value::Growth, 1),
    ("shrinkage", Value::Growth, -1),
];

/// Writes the file; the profile of `value` is the one that is shown first.
///
/// # Errors
///
/// The writer's.
pub fn write<W: Write>(report: &Report, value: Value, mut out: W) -> io::Result<()> {
    serde_json::to_writer(&mut out, &file(report, value))?;
    out.write_all(b"\n")
}

fn file(report: &Report, value: Value) -> File {
    let mut frames = Frames::default();
    let stacks: Vec<_> = sites(report)
        .map(|(_, site)| (site, frames.stack(&path(site))))
        .collect();
    let profiles = PROFILES.iter().map(|&(name, value, sign)| {
        let weighed = stacks
            .iter()
            .map(|(site, stack)| (sign * value.of(site), stack));
        let weighed = weighed.filter(|(weight, _)| *weight > 0);
        let (weights, samples): (Vec<_>, Vec<_>) = weighed
            .map(|(weight, stack)| (weight, stack.clone()))
            .unzip();
        Profile {
            r#type: "sampled",
            name: name.to_owned(),
            unit: match value.unit() {
                "bytes" => "bytes",
                _ => "none",
            },
            start_value: 0,
            end_value: weights
                .iter()
                .fold(0, |sum, weight| sum.saturating_add(*weight)),
            samples,
            weights,
        }
    });
    let target = &report.target;
    File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        name: format!("{} (pid {})", escape(&target.comm), target.pid),
        exporter: concat!("leaktrace ", env!("CARGO_PKG_VERSION")).to_owned(),
        active_profile_index: PROFILES
            .iter()
            .position(|(_, shown, _)| *shown == value)
            .unwrap_or_default(),
        profiles: profiles.collect(),
        shared: frames.shared,
    }
}

/// Numbers frames.
#[derive(Default)]
struct Frames {
    shared: Shared,
    indexes: HashMap<Frame, usize>,
}

impl Frames {
    fn stack(&mut self, path: &[Step]) -> Vec<usize> {
        path.iter().map(|step| self.index(step)).collect()
    }

    fn index(&mut self, step: &Step) -> usize {
        let frame = Frame {
            name: step.name.clone(),
            file: step
                .frame
                .and_then(|frame| frame.file.as_deref().map(escape)),
            line: step.frame.and_then(|frame| frame.line),
        };
        *self.indexes.entry(frame).or_insert_with_key(|frame| {
            self.shared.frames.push(frame.clone());
            self.shared.frames.len() - 1
        })
    }
}
