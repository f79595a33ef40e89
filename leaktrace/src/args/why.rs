//! What was typed for `leaktrace why`.

use anyhow::Result;
use clap::ValueEnum;
use leaktrace::why;

use super::{
    Process, process,
    values::{percent, size},
};

#[derive(clap::Args)]
#[command(group = process::is_needed())]
pub(crate) struct Why {
    #[command(flatten)]
    process: Process,
    /// The allocation site of this rank by live bytes, in the process's own heap profile
    /// [default: the largest ones].
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..), group = "what")]
    site: Option<u32>,
    /// Allocation sites in whose stack a function has this in its name.
    #[arg(long, value_name = "PATTERN", group = "what")]
    function: Option<String>,
    /// The object at this address, hexadecimal.
    #[arg(long, value_name = "HEX", value_parser = hexadecimal, group = "what")]
    address: Option<u64>,
    /// The whole heap, by a selection of its objects; so it is where the heap sampler is off.
    #[arg(long, group = "what")]
    heap: bool,
    /// Memory that its tables may take. A heap that needs more is searched back from its objects, which takes longer.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    max_memory: u64,
    /// Most that it may cost the process, in percent of its throughput: the search makes pauses.
    #[arg(long, value_name = "PCT", default_value = "3", value_parser = percent)]
    max_overhead: f64,
    /// Form of the result.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: WhyFormat,
    /// How many sites to show.
    #[arg(short = 'n', long = "sites", default_value = "3", value_name = "N")]
    sites: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhyFormat {
    Text,
    Json,
    /// A graph, for Graphviz.
    Dot,
}

impl Why {
    pub(crate) fn options(&self) -> Result<why::Options> {
        let choice = match (self.site, &self.function, self.address) {
            (Some(rank), ..) => why::Choice::Site(rank as usize),
            (_, Some(pattern), _) => why::Choice::Function(pattern.clone()),
            (.., Some(address)) => why::Choice::Address(address),
            _ if self.heap => why::Choice::Heap,
            _ => why::Choice::Largest,
        };
        Ok(why::Options {
            pid: self.process.need()?,
            choice,
            sites: self.sites,
            max_memory: self.max_memory,
            max_overhead: Some(self.max_overhead / 100.0),
            start_ticks: None,
            sample_rate: None,
        })
    }
}

/// `0xc000123400`, or without `0x`.
fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
        .map_err(|_| "give an address such as 0xc000123400".to_owned())
}
