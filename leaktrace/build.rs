//! Compiles the capture file's schema, and the kernel side into `OUT_DIR/leaktrace.bpf.o`.
//!
//! `LEAKTRACE_BPF_TOOLCHAIN`, set for the crate, says what compiled the kernel side.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

#[path = "../xtask/src/bpf.rs"]
mod bpf;

fn main() -> ExitCode {
    match compile_schema().and_then(|()| compile_kernel_side()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compile_schema() -> Result<()> {
    let schema = "src/capture/capture.proto";
    println!("cargo::rerun-if-changed={schema}");
    let descriptors = protox::compile([schema], ["src/capture"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}

/// Runs again only when a file that goes into the object, or a tool that made it, has changed.
fn compile_kernel_side() -> Result<()> {
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let sources = [
        "../leaktrace-ebpf/src",
        "../leaktrace-ebpf/Cargo.toml",
        "../leaktrace-ebpf/Cargo.lock",
        "../leaktrace-common/src",
        "../leaktrace-common/Cargo.toml",
        "../Cargo.toml",
    ];
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
    }

    let toolchain = bpf::Toolchain::find()?;
    for tool in [&toolchain.rustc, &toolchain.linker]
        .into_iter()
        .filter(|tool| tool.is_absolute())
    {
        println!("cargo::rerun-if-changed={}", tool.display());
    }
    println!(
        "cargo::rustc-env=LEAKTRACE_BPF_TOOLCHAIN={}",
        toolchain.description
    );
    toolchain.build(
        &here.join("../leaktrace-ebpf"),
        "leaktrace",
        &out.join("bpf"),
        &out.join("leaktrace.bpf.o"),
    )
}
