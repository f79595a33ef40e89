//! leaktrace: attach to a running process and name the allocations it never frees.
//!
//! The modules stand in the order in which the data flows; ARCHITECTURE.md tells the whole way.

pub mod privileges;
pub mod target;
pub mod go;
pub mod plan;
pub mod loss;
pub mod loader;
pub mod address_space;
pub mod duty_cycle;
pub mod overhead;
pub mod turnover;
pub mod drain;
pub mod inventory;
pub mod capture;
pub mod live_heap;
pub mod series;
pub mod verdict;
pub mod goroutine_history;
pub mod goroutine_verdict;
pub mod symbolize;
pub mod report;
pub mod export;
pub mod output;
pub mod reading;
mod stop_signals;
pub mod sampling;
pub mod windows;
pub mod planning;
pub mod check;
pub mod record;
pub mod top;
pub mod goroutines;
pub mod why;
#[cfg(any(test, fuzzing))]
pub mod hostile;
