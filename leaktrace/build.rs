//! Compiles the schemas of the capture file and of pprof's profile, and the kernel side into `OUT_DIR/leaktrace.bpf.o`.
//!
//! `LEAKTRACE_BPF_TOOLCHAIN`, set for the crate, says what compiled the kernel side.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

#[path = "../xtask/src/bpf.rs"]
mod bpf;

fn main() -> ExitCode {
    match compile_schemas().and_then(|()| compile_kernel_side()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compile_schemas() -> Result<()> {
    let schemas = ["src/capture/capture.proto", "src/export/profile.proto"];
    for schema in schemas {
        println!("cargo::rerun-if-changed={schema}");
    }
    let descriptors = protox::compile(schemas, ["src/capture", "src/export"])?;
    prost_build::Config::new()
        // Most groups have none.
        .boxed(".leaktrace.capture.GoroutineCount.channel")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Runs again only when a file that goes into the object, or a tool that made it, has changed.
fn compile_kernel_side() -> Result<()> {
    let variable = |name| env::var_os(name).with_context(|| format!("`{name}` is not set"));
    let cargo = variable("CARGO")?;
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let sources = [
        "../leaktrace-ebpf/src",
        "../leaktrace-ebpf/Cargo.toml",
        "../leaktrace-ebpf/Cargo.lock",
        "../leaktrace-ebpf/rustc.sh",
        "../leaktrace-common/src",
        "../leaktrace-common/Cargo.toml",
        "../Cargo.toml",
    ];
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
    }

    let toolchain = bpf::Toolchain::find()?;
    for tool in [&toolchain.rustc, &toolchain.linker] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }
    println!(
        "cargo::rustc-env=LEAKTRACE_BPF_TOOLCHAIN={}",
        toolchain.description
    );
    // Beside the profiles' folders (OUT_DIR is PROFILE/build/PACKAGE/out in there): compiled once for all.
    let target = out.ancestors().nth(4).unwrap_or(&out).join("bpf");
    let mut build = toolchain.command(&cargo, "build", &here.join("../leaktrace-ebpf"), &target);
    let status = build
        .status()
        .with_context(|| format!("failed to start `{build:?}`"))?;
    ensure!(
        status.success(),
        "failed to build `leaktrace-ebpf` with {}: {status}",
        toolchain.description
    );
    let built = target.join(bpf::TARGET).join("release/leaktrace");
    fs::copy(&built, out.join("leaktrace.bpf.o"))
        .with_context(|| format!("failed to copy `{}`", built.display()))?;
    Ok(())
}
