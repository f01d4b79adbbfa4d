//! The rules of dependency in `docs/architecture.md`, read off `cargo metadata` and the sources.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use self::modules::Modules;

/// The crates of the workspace that each crate may depend on.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("tourin-chassis", &[]),
    ("tourin-registry-api", &[]),
    ("tourin-shared-events", &[]),
    // For tests only: no crate below lists it.
    ("tourin-testbed", &[]),
    ("tourin-registry", &["tourin-chassis", "tourin-registry-api"]),
    ("tourin-gateway", &["tourin-chassis", "tourin-registry-api"]),
    ("tourin-core", &["tourin-chassis", "tourin-registry-api", "tourin-shared-events"]),
    ("tourin-recommendation", &["tourin-chassis", "tourin-registry-api", "tourin-shared-events"]),
    ("tourin-bench-bare-pingora", &[]),
    ("tourin-bench-gateway", &["tourin-chassis", "tourin-gateway"]),
    (
        "tourin-bench",
        &[
            "tourin-chassis",
            "tourin-gateway",
            "tourin-recommendation",
            "tourin-registry",
            "tourin-registry-api",
            "tourin-shared-events",
        ],
    ),
    (
        "tourin",
        &[
            "tourin-chassis",
            "tourin-core",
            "tourin-gateway",
            "tourin-recommendation",
            "tourin-registry",
            "tourin-registry-api",
            "tourin-shared-events",
        ],
    ),
];

/// Crates of engines and HTTP, which a service's `domain` and `app` must not name.
const OUTER_CRATES: [&str; 9] =
    ["sqlx", "lapin", "redis", "mongodb", "pingora", "axum", "hyper", "reqwest", "http"];

/// The crates in which modules that stand beside each other do not use each other in circles.
const CRATES_WITHOUT_CIRCLES: [&str; 9] = [
    "deploy/testbed",
    "gateway",
    "services/chassis",
    "services/core",
    "services/recommendation",
    "services/registry",
    "services/registry-api",
    "services/tourin",
    "shared-events",
];

fn workspace_root() -> PathBuf {
    Path::new("../..").canonicalize().unwrap()
}

/// The normal dependencies of each crate of the workspace, by name, without the test bed that a feature for tests brings.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace_root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let normal = dependencies.iter().filter(|dependency| {
                let of_tests =
                    dependency["name"] == "tourin-testbed" && dependency["optional"] == true;
                dependency["kind"].is_null() && !of_tests
            });
            (text(&package["name"]), normal.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn crates_depend_only_on_what_the_rules_allow() {
    let dependencies = dependencies();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a crate came or went: say above what it may depend on");
    for (name, allowed) in ALLOWED {
        let edges = dependencies[name].iter().filter(|edge| known.contains(edge.as_str()));
        let forbidden: Vec<_> = edges.filter(|edge| !allowed.contains(&edge.as_str())).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn the_gateway_has_no_database_and_the_services_no_proxy() {
    let dependencies = dependencies();
    for (name, forbidden) in [
        ("tourin-gateway", "sqlx"),
        ("tourin-registry", "sqlx"),
        ("tourin-core", "pingora"),
        ("tourin-recommendation", "pingora"),
    ] {
        assert!(!dependencies[name].contains(forbidden), "{name} must not depend on {forbidden}");
    }
}

#[test]
fn sibling_modules_do_not_use_each_other_in_circles() {
    for folder in CRATES_WITHOUT_CIRCLES {
        let circles = Modules::read(&workspace_root().join(folder).join("src")).circles();
        assert!(circles.is_empty(), "{folder}: {circles:#?}");
    }
}

#[test]
fn domain_has_no_derives_of_http() {
    for service in ["core", "recommendation", "registry"] {
        let folder = workspace_root().join("services").join(service).join("src/domain");
        for file in rust_files(&folder) {
            let source = std::fs::read_to_string(&file).unwrap();
            let code: String = source.lines().filter_map(|line| line.split("//").next()).collect();
            for name in ["ToSchema", "IntoParams", "IntoResponse", "FromRequest", "utoipa"] {
                assert!(!code.contains(name), "{}: {name} in domain", file.display());
            }
        }
    }
}

#[test]
fn domain_and_app_know_neither_engines_nor_http() {
    let mut looked_at = 0;
    for service in ["core", "recommendation"] {
        for layer in ["domain", "app"] {
            let folder = workspace_root().join("services").join(service).join("src").join(layer);
            for file in rust_files(&folder) {
                looked_at += 1;
                let source = std::fs::read_to_string(&file).unwrap();
                for (number, line) in source.lines().enumerate() {
                    let code = line.split("//").next().unwrap_or_default();
                    for outer in OUTER_CRATES {
                        let named = code.match_indices(&format!("{outer}::")).any(|(at, _)| {
                            !code[..at].ends_with(|before: char| {
                                before.is_alphanumeric() || before == '_' || before == ':'
                            })
                        });
                        assert!(!named, "{}:{}: {outer} in {layer}", file.display(), number + 1);
                    }
                }
            }
        }
    }
    assert!(looked_at > 10, "only {looked_at} files were looked at");
}

#[test]
fn domain_does_not_know_app_and_app_does_not_know_the_adapters() {
    for service in ["core", "recommendation"] {
        for (layer, outer) in [
            ("domain", &["app", "http", "consumers", "store", "cache"][..]),
            ("app", &["http", "consumers", "store", "cache"]),
        ] {
            let folder = workspace_root().join("services").join(service).join("src").join(layer);
            for file in rust_files(&folder) {
                let source = std::fs::read_to_string(&file).unwrap();
                // Tests at the end of a file may use adapters, and comments may link to them.
                let code = source.split("#[cfg(test)]").next().unwrap_or_default();
                let code: String =
                    code.lines().filter_map(|line| line.split("//").next()).collect();
                for module in outer {
                    let named = code.contains(&format!("crate::{module}::"));
                    assert!(!named, "{}: {layer} uses {module}", file.display());
                }
            }
        }
    }
}

#[test]
fn product_code_has_one_http_client_whose_calls_are_bounded() {
    let root = workspace_root();
    let the_one = root.join("services/chassis/src/http_client.rs");
    let folders = ["gateway", "services", "shared-events"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| rust_files(folder));
    // What a crate has for the tests of others is no product code either.
    let is_of_tests = |file: &PathBuf| {
        let stems = ["tests", "testing"];
        file.iter()
            .any(|part| stems.iter().any(|stem| Path::new(part).file_stem() == Some(stem.as_ref())))
    };
    let product = files.filter(|file| !is_of_tests(file));
    for file in product.filter(|file| *file != the_one) {
        let source = std::fs::read_to_string(&file).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code: String = source.lines().filter(is_code).collect();
        // The watch of the registry is a stream, and its client reads the other bodies in the same way.
        let is_registry_client = file.ends_with("registry-api/src/client.rs");
        for call in ["Client::builder()", "reqwest::Client::new()", ".send()"] {
            let allowed = is_registry_client && call == ".send()";
            assert!(allowed || !code.contains(call), "{}: {call}: use http_client", file.display());
        }
    }
}

/// The metrics in the sources: strings that begin with `tourin_`, without the names of crates.
fn metrics_in_the_sources() -> BTreeSet<String> {
    let root = workspace_root();
    let crates: BTreeSet<String> =
        dependencies().keys().map(|name| name.replace('-', "_")).collect();
    let is_name =
        |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let mut names = BTreeSet::new();
    let folders = ["gateway/src", "services", "shared-events/src"];
    for file in folders.iter().flat_map(|folder| rust_files(&root.join(folder))) {
        if file.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let texts = code.split('"').filter(|text| text.starts_with("tourin_") && is_name(text));
        names.extend(texts.map(str::to_owned).filter(|text| !crates.contains(text)));
    }
    names
}

#[test]
fn the_operators_list_has_every_metric_and_no_other() {
    let root = workspace_root();
    let in_code = metrics_in_the_sources();
    assert!(in_code.len() > 40, "{in_code:?}");
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (_, section) = page.split_once("## Traces, metrics, logs").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let in_list: BTreeSet<String> = section
        .split('`')
        .filter(|text| text.starts_with("tourin_"))
        .map(|metric| metric.split('{').next().unwrap())
        .map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned())
        .collect();
    assert_eq!(in_code, in_list);
}

#[test]
fn the_security_page_names_tests_that_exist() {
    let root = workspace_root();
    let folders = ["gateway", "services", "shared-events"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| rust_files(folder));
    let sources: String = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let page = std::fs::read_to_string(root.join("docs/security.md")).unwrap();
    // Tests have names of three words or more, unlike the other code on the page.
    let is_name = |text: &&str| {
        text.matches('_').count() > 1
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(is_name).collect();
    assert!(named.len() > 100, "{named:?}");
    for test in named {
        let is_there = ["(", "<"].iter().any(|end| sources.contains(&format!("fn {test}{end}")));
        assert!(is_there, "{test}: no such test");
    }
}
