//! Reports as text and JSON.

#![forbid(unsafe_code)]

pub(crate) mod human;
