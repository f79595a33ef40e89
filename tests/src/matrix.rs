//! Which builds of the Go services the tests run on.

/// The releases of `LEAKTRACE_GO_VERSIONS`, else the newest and the oldest.
pub fn go_versions() -> Vec<String> {
    list("LEAKTRACE_GO_VERSIONS", "1.27.3,1.19.8")
}

/// The build modes of `LEAKTRACE_GO_MODES`, as binaries' names have them, else all; `plain` is the
/// one that names do not have.
pub fn go_modes() -> Vec<String> {
    let modes = list("LEAKTRACE_GO_MODES", "plain,stripped,pie,cgo,static");
    modes
        .into_iter()
        .map(|mode| if mode == "plain" { String::new() } else { mode })
        .collect()
}

fn list(variable: &str, default: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    text.split(',').map(|part| part.trim().to_owned()).collect()
}
