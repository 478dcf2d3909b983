//! `scripts/hugepages-setup.sh` as a user without any rights sees it: what it understands, what it
//! says, and that a dry run says it and changes nothing. Nothing here needs root or huge pages.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const PAGES: &str = "/proc/sys/vm/nr_hugepages";
const GROUP: &str = "/proc/sys/vm/hugetlb_shm_group";

fn script(arguments: &[&str]) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/hugepages-setup.sh"))
        .args(arguments)
        .env("SUDO_UID", "1234")
        .env("SUDO_GID", "4321")
        .output()
        .expect("the script runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Fails with this exit code and one line that has all of `needles`.
fn assert_refused(arguments: &[&str], code: i32, needles: &[&str]) {
    let output = script(arguments);
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    for needle in needles {
        assert!(text.contains(needle), "{arguments:?}: {needle:?} is missing in: {text}");
    }
}

/// A directory that does not exist, for the mount.
fn free_directory() -> (tempfile::TempDir, String) {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("huge/pages");
    let text = directory.to_str().expect("text").to_owned();
    (parent, text)
}

fn has_huge_pages() -> bool {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("there is a /proc");
    meminfo.contains("Hugepagesize") && Path::new(PAGES).exists()
}

/// Whether a dry run can go through: there are huge pages, and nobody has set them up already, in
/// which case the script says only that.
fn can_be_set_up() -> bool {
    has_huge_pages() && !Path::new("/run/plasma-hugepages.state").exists()
}

/// The number that the script wants to see in a file, whatever is in it now.
fn wanted(text: &str, file: &str) -> u64 {
    let line = text.lines().find(|line| line.contains(file)).expect("a line about the file");
    line.split(' ').filter_map(|word| word.parse().ok()).next_back().expect("a number")
}

#[test]
fn help_says_everything_and_exits_well() {
    let output = script(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for option in ["--pages", "--size", "--mount", "--undo", "--dry-run", "/mnt/hugepages"] {
        assert!(stdout(&output).contains(option), "{option}");
    }
}

#[test]
fn wrong_arguments_are_told_with_their_value() {
    for (arguments, needles) in [
        (["--frobnicate"].as_slice(), ["unknown argument '--frobnicate'", "--help"]),
        (&["64"], ["unknown argument '64'", "--help"]),
        (&["--pages"], ["--pages needs a value", "--help"]),
        (&["--dry-run", "--mount"], ["--mount needs a value", "--help"]),
        (&["--size="], ["--size needs a value", "--help"]),
        (&["--pages", "0"], ["--pages '0'", "from 1 to 999999999"]),
        (&["--pages", "-3"], ["--pages '-3'", "from 1 to 999999999"]),
        (&["--pages=many"], ["--pages 'many'", "from 1 to 999999999"]),
        (&["--pages", "1000000000"], ["--pages '1000000000'", "from 1 to 999999999"]),
        (&["--pages", "a[$(touch x)]"], ["--pages 'a[$(touch x)]'", "from 1 to 999999999"]),
        (&["--size", "1Q"], ["--size '1Q'", "500M or 8GiB"]),
        (&["--size", "1.5G"], ["--size '1.5G'", "500M or 8GiB"]),
        (&["--size", "5iB"], ["--size '5iB'", "500M or 8GiB"]),
        (&["--size", "0"], ["--size '0'", "no huge page that small"]),
        (&["--size", "999999999999999T"], ["--size '999999999999999T'", "more than 1 PiB"]),
        (&["--mount", "relative"], ["--mount 'relative'", "absolute path"]),
        (&["--mount", "/with space"], ["--mount '/with space'", "absolute path"]),
        (&["--mount", "/x/.."], ["--mount '/x/..'", "root directory"]),
        (&["--pages", "3", "--size", "3"], ["--pages and --size", "one of them"]),
        (&["--undo", "--pages", "3"], ["--undo", "takes no --pages"]),
    ] {
        assert_refused(arguments, 2, &needles);
    }
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    if !has_huge_pages() {
        assert_refused(&["--dry-run"], 1, &["no huge pages"]);
    }
    if !can_be_set_up() {
        return;
    }
    let (parent, directory) = free_directory();
    let group = fs::read_to_string(GROUP).expect("a number");
    let output = script(&["--dry-run", "--pages", "3", "--mount", &directory]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for needle in [
        format!("would change directory {directory}: none -> made"),
        format!("would change mount {directory}: none -> hugetlbfs of user 1234, group 4321"),
    ] {
        assert!(text.contains(&needle), "{needle:?} is missing in: {text}");
    }
    assert_eq!((wanted(&text, PAGES), wanted(&text, GROUP)), (3, 4321), "{text}");
    assert!(!text.contains("ready"), "{text}");
    assert!(!parent.path().join("huge").exists());
    assert_eq!(fs::read_to_string(GROUP).expect("a number"), group);
}

#[test]
fn sizes_become_pages() {
    if !can_be_set_up() {
        return;
    }
    let (_parent, directory) = free_directory();
    let pages = |arguments: &[&str]| {
        let output = script(&[&["--dry-run", "--mount", &directory], arguments].concat());
        wanted(&stdout(&output), PAGES)
    };
    assert_eq!(pages(&["--pages=007"]), 7);
    assert_eq!(pages(&["--size=1"]), 1);
    assert_eq!(pages(&["--size", "64mib"]), pages(&["--size", "67108864"]));
    assert_eq!(pages(&["--size", "64MB"]), pages(&["--size", "64000K"]));
    assert!(pages(&["--size", "1GB"]) < pages(&["--size", "1GiB"]));
}

#[test]
fn more_than_the_memory_is_refused_before_anything_is_done() {
    if has_huge_pages() {
        let (parent, directory) = free_directory();
        let line = ["--dry-run", "--pages", "999999999", "--mount", &directory];
        assert_refused(&line, 1, &["999999999 huge pages", "available memory", "ask for fewer"]);
        assert!(!parent.path().join("huge").exists());
    }
}

#[test]
fn a_directory_with_files_is_not_hidden() {
    if can_be_set_up() {
        let parent = tempfile::tempdir().expect("a directory");
        fs::write(parent.path().join("file"), "precious").expect("written");
        let directory = parent.path().to_str().expect("text");
        let line = ["--dry-run", "--pages", "1", "--mount", directory];
        assert_refused(&line, 1, &[directory, "a mount would hide", "--mount"]);
    }
}
