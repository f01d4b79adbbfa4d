//! Modules that stand beside each other must not use each other in a circle.
//!
//! The edges are read off the sources: each path that begins with `crate::` or `super::`, in a `use` or elsewhere, followed
//! through what modules re-export of their children (`pub use child::Name`) to the module that it leads to. Tests and
//! comments do not count, nor does what a parent and its child use of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::rust_files;

/// A module by its names from the crate's root, such as `["bus", "rabbitmq"]`.
type Module = Vec<String>;

/// The modules of one crate.
#[derive(Default)]
pub struct Modules {
    sources: BTreeMap<Module, String>,
    /// By module: the names that it re-exports, and the child that each is from.
    re_exports: BTreeMap<Module, BTreeMap<String, String>>,
}

impl Modules {
    /// Reads the sources of a crate.
    pub fn read(folder: &Path) -> Self {
        let mut modules = Self::default();
        for file in rust_files(folder) {
            let path = file.strip_prefix(folder).unwrap().with_extension("");
            let mut module: Module =
                path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
                module.pop();
            }
            let source = std::fs::read_to_string(&file).unwrap();
            modules.sources.entry(module).or_default().push_str(&code_of(&source));
        }
        let tests: Vec<Module> = modules.tests();
        modules.sources.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        for (module, source) in &modules.sources {
            let names = modules.re_exports.entry(module.clone()).or_default();
            for path in used_paths(source) {
                if let [child, .., name] = path.as_slice()
                    && modules.sources.contains_key(&joined(module, child))
                {
                    names.insert(name.clone(), child.clone());
                }
            }
        }
        modules
    }

    /// The modules that are declared under `#[cfg(test)]` or for tests of other crates.
    fn tests(&self) -> Vec<Module> {
        let mut tests = Vec::new();
        for (module, source) in &self.sources {
            for after in source.split("#[cfg(").skip(1).filter(|after| {
                after.starts_with("test)]")
                    || after.starts_with("any(test, feature = \"testing\"))]")
            }) {
                let declared = after.split(']').nth(1).unwrap_or_default().trim_start();
                let declared = declared.strip_prefix("pub ").unwrap_or(declared);
                if let Some(name) = declared.strip_prefix("mod ") {
                    tests.push(joined(module, name.split([';', ' ']).next().unwrap()));
                }
            }
        }
        tests
    }

    /// The circles: for each, two of its modules, which use each other directly or through others.
    pub fn circles(&self) -> Vec<String> {
        let mut edges: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, source) in &self.sources {
            for path in paths(source) {
                let Some(path) = absolute(module, &path) else { continue };
                let target = self.module_of(path);
                let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if common < module.len() && common < target.len() {
                    let sibling = |of: &Module| of[..=common].to_vec();
                    edges.entry(sibling(module)).or_default().insert(sibling(&target));
                }
            }
        }
        let mut circles = Vec::new();
        for (from, targets) in &edges {
            for to in targets.iter().filter(|to| *to > from && is_reached(&edges, to, from)) {
                circles.push(format!("{} <-> {}", from.join("::"), to.join("::")));
            }
        }
        circles
    }

    /// The module that a path leads to.
    fn module_of(&self, path: Vec<String>) -> Module {
        let mut module = Module::new();
        for name in path {
            let re_exported = self.re_exports.get(&module).and_then(|names| names.get(&name));
            let name = re_exported.unwrap_or(&name);
            let child = joined(&module, name);
            if !self.sources.contains_key(&child) {
                break;
            }
            module = child;
        }
        module
    }
}

fn is_reached(edges: &BTreeMap<Module, BTreeSet<Module>>, from: &Module, to: &Module) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(edges.get(module).into_iter().flatten());
        }
    }
    false
}

fn joined(module: &[String], child: &str) -> Module {
    module.iter().cloned().chain([child.to_owned()]).collect()
}

/// A source without comments and without the tests at its end.
fn code_of(source: &str) -> String {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines()
        .filter_map(|line| line.split("//").next())
        .fold(String::new(), |code, line| code + line + "\n")
}

/// A path from the crate's root; `None` for one that leads out of the crate.
fn absolute(module: &Module, path: &[String]) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    let rest = path[ups.max(1)..].iter().cloned();
    match path[0].as_str() {
        "crate" => Some(rest.collect()),
        "super" => {
            let parent = module.get(..module.len().checked_sub(ups)?)?;
            Some(parent.iter().cloned().chain(rest).collect())
        }
        _ => None,
    }
}

/// The paths that begin with `crate` or `super`, in `use` statements and elsewhere.
fn paths(source: &str) -> Vec<Vec<String>> {
    let mut paths = used_paths(source);
    for root in ["crate::", "super::"] {
        for (at, _) in source.match_indices(root) {
            let is_end = |c: char| !c.is_alphanumeric() && c != '_' && c != ':';
            let path = source[at..].split(is_end).next().unwrap_or_default();
            paths.push(
                path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            );
        }
    }
    paths
}

/// The paths of the `use` statements, with braces taken apart.
fn used_paths(source: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for statement in source.split(';') {
        let Some(at) = statement.rfind("use ") else { continue };
        let is_statement = statement[..at].trim_end().is_empty()
            || statement[..at].trim_end().ends_with([')', ']', '}', '{'])
            || statement[..at].trim_end().ends_with("pub");
        if is_statement {
            take_apart(&[], &statement[at + "use ".len()..], &mut paths);
        }
    }
    paths
}

fn take_apart(before: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let names = |text: &str| -> Vec<String> {
        let text = text.split(" as ").next().unwrap_or_default();
        text.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let Some(open) = tree.find('{') else {
        if !tree.is_empty() {
            paths.push([before, &names(tree)].concat());
        }
        return;
    };
    let before = [before, &names(&tree[..open])].concat();
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                take_apart(&before, &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Modules {
        let folder = tempfile::tempdir().unwrap();
        for (name, source) in files {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, source).unwrap();
        }
        Modules::read(folder.path())
    }

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        let b = ("b.rs", "use crate::a::Thing;");
        for a in ["use super::b::X;", "use crate::{b::{self, X}, c};", "fn f() { crate::b::f() }"] {
            let modules = crate_of(&[("lib.rs", "mod a;\nmod b;"), ("a.rs", a), b]);
            assert_eq!(modules.circles(), ["a <-> b"], "{a}");
        }
        let through_a_third =
            [("a.rs", "use crate::c::C;"), ("c/mod.rs", "use crate::b::B;"), b].to_vec();
        assert_eq!(crate_of(&through_a_third).circles(), ["a <-> c"]);
    }

    #[test]
    fn a_re_exported_item_belongs_to_its_module() {
        let parent = ("p/mod.rs", "mod a;\nmod b;\npub use a::A;\npub struct Own;");
        let b = ("p/b.rs", "use super::A;");
        let modules = crate_of(&[parent, ("p/a.rs", "use super::b::B;"), b]);
        assert_eq!(modules.circles(), ["p::a <-> p::b"]);
        let modules = crate_of(&[parent, ("p/a.rs", "use super::Own;"), b]);
        assert!(modules.circles().is_empty(), "{:?}", modules.circles());
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let a = "// crate::b\nfn a() {}\n#[cfg(test)]\nmod tests {\n use crate::b::B;\n}";
        let modules = crate_of(&[("a.rs", a), ("b.rs", "use crate::a::a;")]);
        assert!(modules.circles().is_empty(), "{:?}", modules.circles());
    }
}
