//! Keeps what is written beside the code true to it, by reading both as text:
//! flags and commands, fields of the configuration, links, and the tests that
//! the specification names. Whether the sentences are true it cannot tell.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown file of the project with its text, but for what is built.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    let mut directories = vec![project()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.push((path, text));
            }
        }
    }
    pages
}

/// The pages under `docs/` and the README, which speak of the command line.
fn manual() -> String {
    let (docs, readme) = (project().join("docs"), project().join("README.md"));
    let manual = pages().into_iter().filter(|(path, _)| path.starts_with(&docs) || *path == readme);
    manual.map(|(_, text)| text).collect()
}

/// The words that follow `marker`, as far as `is_part` reaches.
fn words_after<'a>(
    text: &'a str,
    marker: &'a str,
    is_part: fn(char) -> bool,
) -> impl Iterator<Item = &'a str> {
    text.match_indices(marker).filter_map(move |(at, _)| {
        let rest = &text[at + marker.len()..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        (end > 0).then(|| &rest[..end])
    })
}

fn is_flag(c: char) -> bool {
    c.is_ascii_lowercase() || c == '-'
}

fn is_identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// `tls_cert_file` as `tlsCertFile`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(&part[..1].to_uppercase());
        text.push_str(&part[1..]);
    }
    text
}

fn fails(what: &str, missing: &BTreeSet<String>) {
    assert!(missing.is_empty(), "{what}:\n  {}", Vec::from_iter(missing.clone()).join("\n  "));
}

#[test]
fn every_flag_that_is_written_of_exists() {
    let cli = read("crates/krustlet/src/cli.rs");
    let known: BTreeSet<_> = words_after(&cli, "pub(crate) ", is_identifier)
        .map(|name| name.replace('_', "-"))
        .collect();
    // Of cargo, in the README's first command; of kube-controller-manager, kube-proxy and kubectl;
    // of clang, Rust's linker and wasm-tools.
    let others = [
        ["release", "allocate-node-cidrs", "masquerade-all", "subresource"],
        ["target", "gc-sections", "wasm-ld-path", "adapt"],
    ]
    .concat();
    let manual = manual();
    // Table rules and dashes are no flags: those follow a blank or a backtick.
    let flags = [" --", "`--"].into_iter().flat_map(|marker| words_after(&manual, marker, is_flag));
    let missing = flags
        .filter(|flag| !flag.starts_with('-') && !others.contains(flag))
        .filter(|flag| !known.contains(*flag))
        .map(str::to_owned)
        .collect();
    fails("flags that krustlet does not have", &missing);
}

#[test]
fn every_command_that_is_written_of_exists() {
    let cli = read("crates/krustlet/src/cli.rs");
    let variants = cli.split("pub(crate) enum Command {").nth(1).unwrap();
    let variants = variants.split("\n}").next().unwrap();
    let known: BTreeSet<_> =
        words_after(variants, "\n    ", is_identifier).map(str::to_lowercase).collect();
    assert!(known.contains("run") && known.contains("completion"), "{known:?}");
    let manual = manual();
    let named = ["`krustlet ", "$ krustlet "].into_iter();
    let named = named.flat_map(|marker| words_after(&manual, marker, is_flag));
    // `port-forward` is the variant `PortForward`.
    let is_known = |name: &str| known.contains(&name.replace('-', ""));
    let missing = named.filter(|name| !is_known(name)).map(str::to_owned).collect();
    fails("commands that krustlet does not have", &missing);
}

#[test]
fn every_field_of_the_configuration_is_documented() {
    let page = read("docs/node.md");
    let source = read("crates/krustlet/src/config/kubelet.rs");
    let structs = source.split("impl KubeletConfiguration").next().unwrap();
    let mut missing = BTreeSet::new();
    let mut name = None;
    for line in structs.lines().map(str::trim) {
        if let Some(renamed) = line.strip_prefix("#[serde(rename = \"") {
            name = renamed.split('"').next().map(str::to_owned);
        } else if let Some((field, _)) =
            line.strip_prefix("pub(crate) ").and_then(|line| line.split_once(':'))
        {
            let field = name.take().unwrap_or_else(|| camel(field));
            let is_there = ["`", "."]
                .into_iter()
                .any(|before| words_after(&page, before, is_identifier).any(|word| word == field));
            if !is_there {
                missing.insert(field);
            }
        }
    }
    fails("fields that docs/node.md does not name", &missing);
}

/// Where the relative links of a page lead, with their fragments.
fn links(page: &str) -> impl Iterator<Item = &str> {
    words_after(page, "](", |c| c != ')' && !c.is_whitespace())
        .filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
}

/// A heading as a fragment, as GitHub makes them.
fn fragment(heading: &str) -> String {
    let letters = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = letters.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut missing = BTreeSet::new();
    for (path, text) in pages() {
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_there = target.exists()
                && (heading.is_empty()
                    || fs::read_to_string(&target).is_ok_and(|text| {
                        text.lines().any(|line| line.starts_with('#') && fragment(line) == heading)
                    }));
            if !is_there {
                missing.insert(format!("{}: {link}", path.display()));
            }
        }
    }
    fails("links that lead nowhere", &missing);
}

#[test]
fn every_page_can_be_found() {
    let pages = pages();
    let mut reached = BTreeSet::new();
    for (path, text) in &pages {
        for link in links(text) {
            let file = link.split('#').next().unwrap_or_default();
            // A page that links to itself is not found by that.
            if let Ok(target) = path.parent().unwrap().join(file).canonicalize()
                && target != *path
            {
                // Who opens a directory is shown its README.
                reached.insert(if target.is_dir() { target.join("README.md") } else { target });
            }
        }
    }
    let docs = project().join("docs");
    let missing = pages
        .iter()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with(&docs) && !reached.contains(*path))
        .map(|path| path.display().to_string())
        .collect();
    fails("pages that no other page links to", &missing);
}

#[test]
fn every_decision_is_listed() {
    let decisions = project().join("docs/decisions");
    let list = read("docs/README.md");
    let missing = fs::read_dir(decisions)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !list.contains(&format!("(decisions/{name})")))
        .collect();
    fails("decisions that docs/README.md does not list", &missing);
}

/// A shell's text with one space between words, and commands on one line each.
fn on_one_line(shell: &str) -> String {
    shell
        .replace("\\\n", " ")
        .split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn guests_are_built_by_the_commands_that_are_written_of() {
    let page = read("docs/languages.md");
    let scripts = on_one_line(&(read("guests/build.sh") + &read("guests/build-large.sh")));
    let mut count = 0;
    let mut missing = BTreeSet::new();
    for block in page.split("```sh\n").skip(1) {
        for command in block.split("```").next().unwrap_or_default().lines() {
            count += 1;
            if !scripts.contains(&on_one_line(command)) {
                missing.insert(command.to_owned());
            }
        }
    }
    assert!(count > 4, "only {count} commands were found in docs/languages.md");
    fails("commands of docs/languages.md that build no guest", &missing);
}

#[test]
fn every_test_that_holds_a_promise_exists() {
    let specification = read("SPECIFICATION.md");
    let mut missing = BTreeSet::new();
    let mut count = 0;
    for (file, name) in specification.split('`').filter_map(|text| text.split_once("::")) {
        let (root, start) = if Path::new(file).extension().is_some_and(|kind| kind == "go") {
            ("tests/cluster", "func ")
        } else if Path::new(file).extension().is_some_and(|kind| kind == "rs") {
            ("crates", "fn ")
        } else {
            // The sentence that says how tests are named.
            continue;
        };
        count += 1;
        let text = fs::read_to_string(project().join(root).join(file)).unwrap_or_default();
        if !text.contains(&format!("{start}{name}(")) {
            missing.insert(format!("{file}::{name}"));
        }
    }
    assert!(count > 50, "only {count} tests were found in the specification");
    fails("tests that do not exist", &missing);
}

#[test]
fn no_promise_names_a_test_twice() {
    let specification = read("SPECIFICATION.md");
    let mut twice = BTreeSet::new();
    for line in specification.lines() {
        let mut names = BTreeSet::new();
        let tests = line.split('`').filter(|text| text.contains("::"));
        twice.extend(tests.filter(|name| !names.insert(*name)).map(str::to_owned));
    }
    fails("tests that one promise names twice", &twice);
}

#[test]
fn every_promise_names_a_test() {
    let specification = read("SPECIFICATION.md");
    let is_promise = |line: &&str| {
        line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let missing = specification
        .lines()
        .filter(is_promise)
        .filter(|line| !line.contains("::"))
        .map(str::to_owned)
        .collect();
    fails("promises that no test holds", &missing);
}
