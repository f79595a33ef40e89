//! The bill of materials, in the form of CycloneDX 1.5: which crates are compiled into the file, for both sides, by
//! cargo's own account, and what of the machine is linked into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{bpf, run, workspace};

/// A crate, and what it depends on, by [`url`].
type Crates = BTreeMap<String, (Value, BTreeSet<String>)>;

/// The list, for a leaktrace whose SHA-256 is `sum`. Of the same commit it is the same.
///
/// # Errors
///
/// When cargo, git or a compiler does not answer.
pub(super) fn list(sum: &str) -> Result<String> {
    let root = workspace::root();
    let mut crates = Crates::new();
    let user = collect(&root, "leaktrace", workspace::TRIPLE, &mut crates)?;
    let kernel_side = root.join("leaktrace-ebpf");
    let kernel = collect(&kernel_side, "leaktrace-ebpf", bpf::TARGET, &mut crates)?;
    let (mut component, mut needs) = crates.remove(&user).context("leaktrace is not in it")?;
    component["type"] = "application".into();
    component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    needs.insert(kernel);

    let linked = linked()?;
    needs.extend(
        linked
            .iter()
            .filter_map(|part| part["bom-ref"].as_str())
            .map(str::to_owned),
    );
    let mut dependencies = vec![json!({ "ref": user, "dependsOn": needs })];
    let mut components = linked;
    for (name, (part, needs)) in crates {
        dependencies.push(json!({ "ref": name, "dependsOn": needs }));
        components.push(part);
    }
    let list = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "timestamp": super::date_of_commit("%cI")?, "component": component },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

/// Adds `package` of the workspace in `folder` and all that is compiled into it for `target`; gives its URL.
/// What only runs while it is built is not in it.
fn collect(folder: &Path, package: &str, target: &str, crates: &mut Crates) -> Result<String> {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(folder).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        target,
    ]);
    let metadata: Value = serde_json::from_str(&run::output(&mut cargo)?)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let by_id = |parts: Vec<Value>| -> BTreeMap<String, Value> {
        let id = |part: &Value| part["id"].as_str().unwrap_or_default().to_owned();
        parts.into_iter().map(|part| (id(&part), part)).collect()
    };
    let packages = by_id(list(&metadata["packages"]));
    let nodes = by_id(list(&metadata["resolve"]["nodes"]));
    let root = packages.iter().find(|(_, found)| found["name"] == package);
    let (root, found) = root.with_context(|| format!("cargo knows no `{package}`"))?;

    let mut open = vec![root.clone()];
    let mut seen = BTreeSet::from([root.clone()]);
    while let Some(id) = open.pop() {
        let mut needs = BTreeSet::new();
        for needed in list(&nodes[&id]["deps"]) {
            let kinds = list(&needed["dep_kinds"]);
            let pkg = needed["pkg"].as_str().unwrap_or_default();
            // Neither of build scripts nor of tests; and macros run in the compiler.
            let is_compiled_in = kinds.iter().any(|kind| kind["kind"].is_null());
            if !is_compiled_in || is_macro(&packages[pkg]) {
                continue;
            }
            needs.insert(url(&packages[pkg]));
            if seen.insert(pkg.to_owned()) {
                open.push(pkg.to_owned());
            }
        }
        let package = &packages[&id];
        crates
            .entry(url(package))
            .or_insert_with(|| (component(package), BTreeSet::new()))
            .1
            .extend(needs);
    }
    Ok(url(found))
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    let mut kinds = targets.flat_map(|target| target["kind"].as_array().into_iter().flatten());
    kinds.any(|kind| kind == "proc-macro")
}

/// A package's URL, by which it is also referred to.
fn url(package: &Value) -> String {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": url(package),
        "name": package["name"],
        "version": package["version"],
        "purl": url(package),
    });
    if let Some(license) = package["license"].as_str() {
        // Old packages have `MIT/Apache-2.0`.
        let license = license.replace('/', " OR ");
        let expression = license.split_whitespace().collect::<Vec<_>>().join(" ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    component
}

/// What is in the file of the compiler and of the machine.
fn linked() -> Result<Vec<Value>> {
    let rustc = run::output(Command::new("rustc").arg("--version"))?;
    let libc = run::output(Command::new("ldd").arg("--version"))?;
    let rust = rustc.split_whitespace().nth(1).unwrap_or_default();
    let libc = libc
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().last());
    let part = |name: &str, version: &str, license: &str| {
        let url = format!("pkg:generic/{name}@{version}");
        json!({
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": version,
            "purl": url,
            "licenses": [{ "expression": license }],
        })
    };
    Ok(vec![
        part("rust-std", rust, "MIT OR Apache-2.0"),
        part("glibc", libc.unwrap_or_default(), "LGPL-2.1-or-later"),
    ])
}
