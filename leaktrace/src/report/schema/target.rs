//! Whom a report is about.

use serde::{Deserialize, Serialize};

/// Who was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Process id.
    pub pid: u32,
    /// Its short name.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// Build id of that file; absent if it has none, or it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// When the process was started, in clock ticks since the machine was: with `pid` and `boot_unix_s` it
    /// names the process.
    #[serde(default)]
    pub start_ticks: u64,
    /// Wall clock when the machine was started, in seconds since 1970, as far as clocks were not set since.
    #[serde(default)]
    pub boot_unix_s: u64,
    /// Path of its control group; absent if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Id of its container, 64 hexadecimal digits; absent if its control group names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Its PIDs inside: in the pid namespaces that it is in besides that of `pid`, the innermost last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ns_pids: Vec<u32>,
    /// `go1.27.3` or `native`.
    pub runtime: String,
    /// Go targets only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go: Option<GoReport>,
}

/// What is known of a Go target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoReport {
    /// The toolchain.
    pub version: String,
    /// Linked with `-s -w`.
    pub stripped: bool,
    /// Position independent.
    pub pie: bool,
    /// The runtime's heap sampler was running at the attach.
    pub heap_profiling: bool,
    /// `runtime.MemProfileRate` at the attach.
    pub sample_rate: u64,
    /// Who sampled its heap: `runtime`, `leaktrace`, or `none`.
    #[serde(default)]
    pub sampling: String,
    /// `--go-enable-heap-profile` has switched the sampler on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_switch: Option<SamplerSwitchReport>,
}

/// `runtime.MemProfileRate` was written for the time of the recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplerSwitchReport {
    /// What it was without leaktrace.
    pub rate_before: u64,
    /// What was written.
    pub rate_written: u64,
    /// It was found written already: an earlier leaktrace was killed.
    pub left_on: bool,
    /// What became of it: `put-back`, `target-gone`, `changed` (by the target: left as it is),
    /// `failed` (it stays; see the limits) or `unknown` (leaktrace was killed: it stays).
    pub end: String,
}
