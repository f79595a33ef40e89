//! Reports as text and JSON.
//!
//! [`build()`] makes a [`Report`] from a decoded capture and the symbols of its addresses: sites put
//! together, judged and ranked, with everything that was lost or cannot be seen. [`json`] and
//! [`text`] write it.
//!
//! Contract: pure; writers are generic. docs/report-schema.md is the contract with readers of the
//! JSON: fields may be added, never renamed. Names that come from the target are data: the text
//! form escapes control characters in them.

#![forbid(unsafe_code)]

pub mod human;
mod schema;
mod symbols;
mod stack;
pub mod fold;
mod head;
mod allocators;
mod build;
mod memory;
mod overhead;
pub mod goroutines;
pub mod why;
pub mod check;
pub mod json;
pub mod text;
pub mod diff;

pub use allocators::AllocatorReport;
pub use build::{Detailed, ReportOptions, build, build_detailed, build_from};
pub use overhead::{FamilyCost, OverheadReport};
pub use schema::{
    EstimateReport, Frame, GoReport, Kind, LimitReport, MallocReport, MemoryReport, Method, Report,
    SCHEMA, SiteReport, Summary, SurvivalReport, TargetReport, WindowReport, WindowsReport,
};
pub use symbols::SymbolTable;
