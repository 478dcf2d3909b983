//! What the sources have to look like, found by reading them: who may use whom, where `unsafe` and
//! the clock may be, and how wide lines may get.
//!
//! The lists of exceptions are here for everybody to see, and may only shrink: an entry that is no
//! longer needed fails as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;

/// Files with lines that are too wide, and how many of them. (rustfmt does not fold comments.)
const WIDE_FILES: &[(&str, usize)] = &[
    // A step of a scenario is one line, however much happens.
    ("src/store/tests/scenarios.rs", 13),
];

/// Which modules each module may use. What is not here may be used by nobody.
const ARROWS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("limits", &[]),
    ("time", &[]),
    ("polling", &["limits"]),
    ("threads", &[]),
    ("slab", &[]),
    ("protocol", &["ids", "limits", "time"]),
    ("shm", &["ids", "limits", "time"]),
    ("directory", &["ids", "shm"]),
    ("eviction", &["ids", "slab"]),
    ("store", &["ids", "limits", "time", "protocol", "eviction", "slab"]),
    (
        "server",
        &[
            "ids",
            "limits",
            "time",
            "protocol",
            "shm",
            "directory",
            "eviction",
            "store",
            "polling",
            "threads",
        ],
    ),
    ("client", &["ids", "limits", "time", "protocol", "shm", "directory", "polling", "threads"]),
    ("testing", &["eviction", "limits", "server", "shm"]),
];

/// What a value without I/O has no use for.
const OUTSIDE_WORLD: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::sync",
    "std::thread",
    "libc::",
    "log::",
    "mio::",
    "nix::",
];

#[test]
fn modules_use_only_those_that_they_may() {
    let mut seen = BTreeSet::new();
    for source in production_sources() {
        let Some(module) = source.module() else { continue };
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| {
            panic!("{}: say in ARROWS what the module {module} may use", source.path)
        });
        seen.insert(module.clone());
        for (number, line) in source.code() {
            let at = format!("{}:{number}: {}", source.path, line.trim());
            assert!(!line.contains("crate::{"), "one path a line, so that arrows show: {at}");
            for used in line.split("crate::").skip(1).map(first_word) {
                assert!(used == module || allowed.contains(&used), "an arrow against ARROWS: {at}");
            }
            let is_root = source.path.matches('/').count() == 1 || source.path.ends_with("/mod.rs");
            let leaves = is_root && source.depth() <= 2 && line.contains("super::");
            assert!(!leaves, "another module, but not by its name: {at}");
        }
    }
    let listed: BTreeSet<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, listed, "ARROWS has the modules that there are");
}

#[test]
fn the_store_knows_nothing_of_the_outside_world() {
    let mut files = 0;
    for source in production_sources() {
        if !matches!(source.module().as_deref(), Some("store" | "eviction")) {
            continue;
        }
        files += 1;
        for (number, line) in source.code() {
            let found = OUTSIDE_WORLD.iter().find(|name| line.contains(**name));
            assert_eq!(found, None, "{}:{number}: {}", source.path, line.trim());
        }
    }
    assert!(files > 10, "the store was not found");
}

#[test]
fn unsafe_code_is_in_one_folder() {
    for source in sources(&["src"]) {
        for (number, line) in source.code() {
            let at = format!("{}:{number}: {}", source.path, line.trim());
            let is_unsafe = words(&line).any(|word| word == "unsafe");
            assert!(!is_unsafe || source.path.starts_with("src/shm/"), "{at}");
            let allows = line.contains("allow(unsafe_code");
            assert!(!allows || source.path == "src/shm/mod.rs", "{at}");
        }
    }
    // In the Python package there is the buffer protocol, and what calls it.
    let may = ["python/src/buffers.rs", "python/src/writer.rs"];
    for source in sources(&["python/src"]).filter(|source| !may.contains(&source.path.as_str())) {
        for (number, line) in source.code() {
            let is_unsafe = words(&line).any(|word| word == "unsafe" || word == "unsafe_code");
            assert!(!is_unsafe, "{}:{number}: {}", source.path, line.trim());
        }
    }
}

#[test]
fn b30_one_file_reads_the_clock_and_one_sleeps() {
    let clock = ["Instant::now", "SystemTime::now", "clock_gettime", "gettimeofday"];
    for source in sources(&["src", "tests"]).filter(|source| source.path != "tests/tidy.rs") {
        for (number, line) in source.code() {
            let at = format!("{}:{number}: {}", source.path, line.trim());
            let reads = clock.iter().any(|call| line.contains(call));
            assert!(!reads || source.path == "src/time.rs", "{at}");
            let sleeps = line.contains("thread::sleep");
            assert!(!sleeps || source.path == "tests/support/mod.rs", "{at}");
            let allows = line.contains("allow(clippy::disallowed_methods");
            let may = ["src/time.rs", "tests/support/mod.rs"].contains(&source.path.as_str());
            assert!(!allows || may, "{at}");
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for source in sources(&["src", "tests", "examples", "benches"]) {
        assert!(source.text.starts_with("//! "), "{} does not open with `//!`", source.path);
    }
}

#[test]
fn nothing_is_left_undone() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore")];
    for source in sources(&["src", "tests", "examples", "benches", "build.rs", "scripts", "proto"])
    {
        for (number, line) in source.text.lines().enumerate() {
            let found = marks.iter().find(|mark| line.contains(**mark));
            assert_eq!(found, None, "{}:{}: {}", source.path, number + 1, line.trim());
        }
    }
}

#[test]
fn lines_are_narrow() {
    let wide = sources(&["src", "tests", "examples", "benches", "build.rs"]).map(|source| {
        let wide = source.text.lines().filter(|line| line.chars().count() > COLUMNS_MAX);
        (source.path.clone(), wide.count())
    });
    assert_within(wide, 0, WIDE_FILES, "lines of more than 100 columns");
}

#[test]
fn the_map_shows_what_is_there() {
    let map = read("ARCHITECTURE.md");
    let places = table_places(&map);
    assert!(places.len() > 8, "the table of folders was not found: {places:?}");
    for place in &places {
        assert!(root().join(place).exists(), "ARCHITECTURE.md: {place} does not exist");
    }
    for entry in entries("src") {
        let described = places.iter().any(|place| place.trim_end_matches('/').starts_with(&entry));
        assert!(described || entry == "src/lib.rs", "{entry} is missing in ARCHITECTURE.md");
    }
    for paragraph in map.split("\n\n").filter(|paragraph| paragraph.starts_with("Inside `")) {
        let mut names = quoted(paragraph);
        let folder = root().join(names.next().expect("Inside `folder/`"));
        for name in names {
            let is_there =
                ["", ".rs", ".py"].iter().any(|end| folder.join(format!("{name}{end}")).exists());
            assert!(is_there, "ARCHITECTURE.md: {name} is not in {folder:?}");
        }
    }
}

/// Each number is at most `max`, or at most what the list of exceptions allows; and every exception
/// is still needed.
fn assert_within(
    numbers: impl Iterator<Item = (String, usize)>,
    max: usize,
    exceptions: &[(&str, usize)],
    what: &str,
) {
    let mut problems = Vec::new();
    let mut needed = BTreeSet::new();
    for (path, number) in numbers.filter(|(_, number)| *number > max) {
        let allowed = exceptions.iter().find(|(name, _)| *name == path).map_or(max, |(_, n)| *n);
        if number > allowed {
            problems.push(format!("{path}: {number} {what}, at most {allowed}"));
        }
        needed.insert(path);
    }
    for (path, _) in exceptions.iter().filter(|(path, _)| !needed.contains(*path)) {
        problems.push(format!("{path}: is no exception any more, take it off the list"));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

// ---- reading ------------------------------------------------------------------------------------

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// The module at the root of the crate that it belongs to; none for the root and the program.
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?.trim_end_matches(".rs");
        (!matches!(first, "lib" | "bin")).then(|| first.to_owned())
    }

    fn depth(&self) -> usize {
        self.path.matches('/').count()
    }

    /// Numbered lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.text.lines().enumerate().filter_map(|(index, line)| {
            let code = line.split("//").next().unwrap_or_default();
            (!code.trim().is_empty()).then(|| (index + 1, code.to_owned()))
        })
    }
}

/// Files below these places.
fn sources(places: &[&str]) -> impl Iterator<Item = Source> {
    let mut paths = Vec::new();
    for place in places {
        collect(&root().join(place), &mut paths);
    }
    assert!(!paths.is_empty(), "nothing was found in {places:?}");
    paths.sort();
    paths.into_iter().map(|path| {
        let name = path.strip_prefix(root()).expect("inside").to_str().expect("text").to_owned();
        Source { text: read(&name), path: name }
    })
}

/// What is in `src` without its tests.
fn production_sources() -> impl Iterator<Item = Source> {
    let is_test = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    sources(&["src"]).filter(move |source| !is_test(&source.path)).map(|source| {
        let production = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        Source { text: production.to_owned(), path: source.path }
    })
}

fn collect(place: &Path, into: &mut Vec<PathBuf>) {
    if place.is_dir() {
        for entry in fs::read_dir(place).expect("a directory") {
            collect(&entry.expect("an entry").path(), into);
        }
    } else if place.extension().is_some_and(|kind| ["rs", "sh", "proto"].iter().any(|k| kind == *k))
    {
        into.push(place.to_owned());
    }
}

/// Names of what lies in a folder, from the root of the repository.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names.map(|name| format!("{folder}/{}", name.to_str().expect("text"))).collect()
}

/// What the first columns of tables have in backquotes.
fn table_places(text: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let columns = rows.filter_map(|row| row.split(" | ").next());
    columns
        .flat_map(|column| quoted(&format!("`{column}")).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// What is in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn first_word(text: &str) -> &str {
    words(text).next().unwrap_or_default()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
