//! The rules of the house: links that lead somewhere, one door to the disk, dependencies that point down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files below `dir` whose names end with `suffix`, without hidden directories and what builds leave.
fn files_below(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(files_below(&path, suffix));
            }
        } else if name.ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all findings at once.
fn expect_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

// ---- documents ----

/// The text outside fenced blocks and inline code.
fn prose(markdown: &str) -> String {
    let mut in_fence = false;
    let lines = markdown.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_fence ^= is_fence;
        !in_fence && !is_fence
    });
    lines.map(|line| line.split('`').step_by(2).collect::<String>() + "\n").collect()
}

/// The targets of `[text](target)`.
fn links(markdown: &str) -> Vec<String> {
    let prose = prose(markdown);
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to.to_string()).collect()
}

/// The anchors of the headings, as web views of repositories make them.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut in_fence = false;
    let headings = markdown.lines().filter(|line| {
        in_fence ^= line.trim_start().starts_with("```");
        !in_fence && line.starts_with('#')
    });
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
            kept.map(|char| if char == ' ' { '-' } else { char }).collect()
        })
        .collect()
}

fn is_elsewhere(link: &str) -> bool {
    link.starts_with("http://") || link.starts_with("https://")
}

#[test]
fn links_lead_to_files_and_headings() {
    let root = root();
    let mut broken = Vec::new();
    for document in files_below(&root, ".md") {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !is_elsewhere(link)) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => document.clone(),
                _ => document.parent().unwrap().join(file),
            };
            let is_there = target.exists() && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", document.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    expect_none("links that lead nowhere", broken);
}

#[test]
fn every_document_is_linked_from_the_front() {
    let root = root();
    let linked: BTreeSet<PathBuf> = ["README.md", "ARCHITECTURE.md"]
        .iter()
        .flat_map(|front| links(&read(&root.join(front))))
        .filter_map(|link| root.join(link.split('#').next().unwrap()).canonicalize().ok())
        .collect();
    let unlinked = files_below(&root.join("docs"), ".md")
        .into_iter()
        .filter(|document| !linked.contains(document))
        .map(|document| document.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    expect_none("documents that neither README.md nor ARCHITECTURE.md names", unlinked);
}

#[test]
fn design_documents_are_numbered_once() {
    let mut by_number = BTreeMap::<String, Vec<String>>::new();
    let mut wrong = Vec::new();
    for document in files_below(&root().join("docs/design"), ".md") {
        let name = document.file_name().unwrap().to_string_lossy().into_owned();
        match name.split_once('-') {
            Some((number, _)) if number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                if !read(&document).starts_with(&format!("# {number}: ")) {
                    wrong.push(format!("{name} does not begin with `# {number}: `"));
                }
                by_number.entry(number.to_string()).or_default().push(name);
            }
            _ => wrong.push(format!("{name} is not named NNNN-title.md")),
        }
    }
    wrong.extend(
        by_number.values().filter(|names| names.len() > 1).map(|names| format!("one number: {names:?}")),
    );
    expect_none("design documents", wrong);
}

#[test]
fn the_program_in_the_readme_is_the_example() {
    let readme = read(&root().join("README.md"));
    let (_, rest) = readme.split_once("```rust\n").expect("README.md shows a program");
    let (program, _) = rest.split_once("```").unwrap();
    let example = read(&root().join("crates/lsfs/examples/event_log.rs"));
    assert!(example.ends_with(program), "README.md and crates/lsfs/examples/event_log.rs differ");
}

// ---- sources ----

/// The lines of a source file with their numbers, without comments, strings and `#[cfg(test)]` items.
fn code(source: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    // `Some(depth)` inside an item that is only built for tests; braces are counted from its attribute on.
    let mut test_item: Option<i32> = None;
    for (number, line) in source.lines().enumerate() {
        let line = without_strings(line.split("//").next().unwrap_or(""));
        if line.trim() == "#[cfg(test)]" {
            test_item = Some(0);
            continue;
        }
        let Some(depth) = &mut test_item else {
            lines.push((number + 1, line));
            continue;
        };
        let opened = line.matches('{').count() as i32;
        *depth += opened - line.matches('}').count() as i32;
        let has_ended = *depth <= 0 && (line.contains('}') || line.trim_end().ends_with(';'));
        if has_ended {
            test_item = None;
        }
    }
    lines
}

fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    line.match_indices(word).any(|(at, _)| {
        !is_part(line[..at].chars().last()) && !is_part(line[at + word.len()..].chars().next())
    })
}

#[test]
fn only_io_touches_the_disk_makes_threads_and_is_unsafe() {
    let source_dir = root().join("crates/lsfs/src");
    let mut found = Vec::new();
    for path in files_below(&source_dir, ".rs") {
        let name = path.strip_prefix(&source_dir).unwrap();
        if name.starts_with("io") {
            continue;
        }
        for (number, line) in code(&read(&path)) {
            for word in ["fs", "std::thread", "thread::spawn", "thread::Builder", "unsafe", "libc", "rustix"]
            {
                if has_word(&line, word) {
                    found.push(format!("{}:{number}: {word}", name.display()));
                }
            }
        }
    }
    expect_none("outside io/", found);
}

#[test]
fn the_scan_for_forbidden_words_sees_them() {
    let source = "use std::fs;\n// std::thread\nlet s = \"unsafe\";\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n\
                  unsafe { call() }\n#[cfg(test)]\nmod other;\nthread::spawn(f);\n";
    let seen: Vec<_> = code(source)
        .into_iter()
        .flat_map(|(number, line)| {
            ["std::fs", "std::thread", "unsafe", "thread::spawn"]
                .into_iter()
                .filter(move |word| has_word(&line, word))
                .map(move |word| (number, word))
        })
        .collect();
    assert_eq!(seen, [(1, "std::fs"), (8, "unsafe"), (11, "thread::spawn")]);
    assert!(!has_word("unsafe_op", "unsafe"));
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let found = files_below(&root(), ".rs")
        .into_iter()
        .filter(|path| {
            ["utils", "util", "common", "helpers", "helper", "misc", "types"].iter().any(|name| {
                path.components()
                    .any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs") == *name)
            })
        })
        .map(|path| path.display().to_string())
        .collect();
    expect_none("files or folders with names that say nothing", found);
}

/// What each crate of the workspace may depend on of the workspace; a new crate is entered here.
const EDGES: [(&str, &[&str]); 4] =
    [("kvs", &["lsfs"]), ("lsfs", &[]), ("lsfs-cli", &["lsfs"]), ("lsfs-raft", &["lsfs"])];

#[test]
fn crates_depend_downwards() {
    let crates = root().join("crates");
    let names: BTreeSet<String> = fs::read_dir(&crates)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| crates.join(name).join("Cargo.toml").exists())
        .collect();
    let mut wrong = Vec::new();
    for name in &names {
        let Some((_, allowed)) = EDGES.iter().find(|(of, _)| of == name) else {
            wrong.push(format!("{name} is not in EDGES"));
            continue;
        };
        for dependency in dependencies(&read(&crates.join(name).join("Cargo.toml"))) {
            if names.contains(&dependency) && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    expect_none("dependencies", wrong);
}

/// The names in `[dependencies]` and `[build-dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            if let Some(name) = section.strip_prefix("dependencies.") {
                names.push(name.to_string());
            }
        } else if matches!(section, "dependencies" | "build-dependencies")
            && let Some((key, _)) = line.split_once(['.', ' ', '='])
            && !key.is_empty()
            && !key.starts_with('#')
        {
            names.push(key.to_string());
        }
    }
    names
}
