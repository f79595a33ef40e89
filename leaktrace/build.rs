//! Compiles the capture file's schema.

fn main() -> anyhow::Result<()> {
    let schema = "src/capture/capture.proto";
    println!("cargo::rerun-if-changed={schema}");
    let descriptors = protox::compile([schema], ["src/capture"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
