//! How much memory this process may use, and how many huge pages there are.
//!
//! The least of the machine's memory and the limits of the process's control groups counts: of the
//! one it is in and of all those around it, in both versions of the kernel's interface (a machine
//! may have both at a time). In a container the mount may show only a part of the hierarchy;
//! what cannot be seen from inside limits nothing here.
//!
//! Everything is read below a root directory, `/` in production and a made-up tree in tests. What
//! the numbers mean for a store is `config`'s business.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::shm::segment::meminfo_bytes;

/// No machine has so many bytes, whatever the size of its pages.
const UNLIMITED_FROM: u64 = 1 << 62;

/// The memory that this process may use, bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// Without swap.
    pub memory: u64,
    /// With swap.
    pub memory_and_swap: u64,
    /// The control group that sets `memory_and_swap`, unless the machine itself does.
    pub cgroup: Option<PathBuf>,
}

/// The huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HugePages {
    pub page_bytes: u64,
    /// Pages that can be had now.
    pub available: u64,
}

impl MemoryLimit {
    /// Asks the system.
    pub(super) fn of_this_process(root: &Path) -> io::Result<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
        let total = meminfo_bytes(&meminfo, "MemTotal").ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no line MemTotal")
        })?;
        let swap = meminfo_bytes(&meminfo, "SwapTotal").unwrap_or(0);
        let mut least = Least { memory: total, swap, both: u64::MAX, cgroup: None };
        for hierarchy in Hierarchy::of_this_process(root) {
            for group in hierarchy.groups() {
                least.lower(hierarchy.version, group);
            }
        }
        let memory_and_swap = least.sum().min(least.both);
        Ok(Self { memory: least.memory, memory_and_swap, cgroup: least.cgroup })
    }
}

/// The least limits so far, bytes.
struct Least {
    memory: u64,
    swap: u64,
    /// Of the sum of both, where a group limits that.
    both: u64,
    /// The group that has lowered what can be had in all.
    cgroup: Option<PathBuf>,
}

impl Least {
    fn sum(&self) -> u64 {
        self.memory.saturating_add(self.swap)
    }

    fn lower(&mut self, version: Version, group: &Path) {
        let bytes = |file: &str| number(&group.join(file)).unwrap_or(u64::MAX);
        let (before, memory_before) = (self.sum().min(self.both), self.memory);
        match version {
            // Without accounting of swap there is no second file.
            Version::One => {
                self.memory = self.memory.min(bytes("memory.limit_in_bytes"));
                self.both = self.both.min(bytes("memory.memsw.limit_in_bytes"));
            }
            Version::Two => {
                self.memory = self.memory.min(bytes("memory.max"));
                self.swap = self.swap.min(bytes("memory.swap.max"));
            }
        }
        // A group that limits nothing but swap is named only if no other limits memory.
        let is_named = self.memory < memory_before || self.both != u64::MAX;
        if self.sum().min(self.both) < before && (is_named || self.cgroup.is_none()) {
            self.cgroup = Some(group.to_owned());
        }
    }
}

/// Memory that this process can still be given, bytes: an estimate of what the machine has and the
/// control groups allow, without throwing out what is in use. Where there is nothing to read, there
/// is no limit.
pub(super) fn available_bytes(root: &Path) -> u64 {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let machine = meminfo_bytes(&meminfo, "MemAvailable").unwrap_or(u64::MAX);
    let hierarchies = Hierarchy::of_this_process(root);
    let groups = hierarchies.iter().flat_map(|hierarchy| {
        // Pages of files that nobody has used lately are counted, but go when memory is wanted.
        hierarchy
            .groups()
            .filter_map(|group| room_in_group(hierarchy.version, group, &["inactive"]))
    });
    groups.fold(machine, u64::min)
}

/// Memory and swap that the control groups still allow if all pages of files that they count are
/// thrown out, bytes, and the group that says so. `None` if none has a limit.
pub(super) fn room_in_groups(root: &Path) -> Option<(u64, PathBuf)> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let swap = meminfo_bytes(&meminfo, "SwapFree").unwrap_or(0);
    let hierarchies = Hierarchy::of_this_process(root);
    let groups = hierarchies.iter().flat_map(|hierarchy| {
        hierarchy.groups().filter_map(|group| {
            let memory = room_in_group(hierarchy.version, group, &["inactive", "active"])?;
            let swap = swap.min(swap_in_group(hierarchy.version, group));
            Some((memory.saturating_add(swap), group.to_owned()))
        })
    });
    groups.min_by_key(|(room, _)| *room)
}

/// Bytes of swap that a group still allows.
fn swap_in_group(version: Version, group: &Path) -> u64 {
    let bytes = |file: &str| number(&group.join(file));
    let left = |limit: &str, usage: &str| Some(bytes(limit)?.saturating_sub(bytes(usage)?));
    let left = match version {
        // The sum of both has a limit: swap is what it allows beyond memory.
        Version::One => left("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"),
        Version::Two => left("memory.swap.max", "memory.swap.current"),
    };
    left.unwrap_or(u64::MAX)
}

/// Bytes that a group still allows if these pages of files (`active`, `inactive`) are thrown out.
fn room_in_group(version: Version, group: &Path, thrown_out: &[&str]) -> Option<u64> {
    let (limit, usage, prefix) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        Version::Two => ("memory.max", "memory.current", ""),
    };
    let limit = number(&group.join(limit))?;
    let usage = number(&group.join(usage))?;
    let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let files = thrown_out.iter().map(|pages| {
        let name = format!("{prefix}{pages}_file ");
        let bytes =
            statistics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
        bytes.unwrap_or(0_u64)
    });
    Some(limit.saturating_sub(usage.saturating_sub(files.sum())))
}

impl HugePages {
    /// The huge pages of the size that the system takes when nobody names one.
    pub(super) fn of_default_size(root: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        Self::of_size(root, meminfo_bytes(&meminfo, "Hugepagesize")?)
    }

    /// The huge pages of this size.
    pub(super) fn of_size(root: &Path, page_bytes: u64) -> Option<Self> {
        let directory = format!("sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes / 1024);
        let pages = |file: &str| number(&root.join(&directory).join(file));
        // Free pages may be promised to mappings that have not touched them. Beyond the pool the
        // kernel makes up to `overcommit` more when asked, if it finds the memory.
        let free = pages("free_hugepages")?.saturating_sub(pages("resv_hugepages")?);
        let more = pages("nr_overcommit_hugepages")?.saturating_sub(pages("surplus_hugepages")?);
        Some(Self { page_bytes, available: free.saturating_add(more) })
    }
}

#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

/// One mounted hierarchy of control groups, and where this process is in it.
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    group: PathBuf,
}

impl Hierarchy {
    fn of_this_process(root: &Path) -> Vec<Self> {
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
        let (memberships, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        mounts.lines().filter_map(|mount| Self::from_mount(root, mount, &memberships)).collect()
    }

    /// From a line like `36 32 0:33 /root /mount rw shared:1 - cgroup2 source rw,super,options`.
    fn from_mount(root: &Path, line: &str, memberships: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (mount_root, mount_point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let version = match (file_system.next()?, file_system.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|o| o == "memory") => Version::One,
            _ => return None,
        };
        let mount = root.join(mount_point.trim_start_matches('/'));
        // A process in a container may be told a path that its mount does not show. Then the top
        // of the mount is as close as one can get.
        let below = Path::new(membership(version, memberships)?).strip_prefix(mount_root);
        let shown = below.ok().filter(|below| !below.starts_with(".."));
        let group = shown.map_or_else(|| mount.clone(), |below| mount.join(below));
        Some(Self { version, mount, group })
    }

    /// The group of this process and all around it, up to the top of what is mounted.
    fn groups(&self) -> impl Iterator<Item = &Path> {
        self.group.ancestors().take_while(|group| group.starts_with(&self.mount))
    }
}

/// The path in a line like `4:cpu,memory:/path` (version 1) or `0::/path` (version 2).
fn membership(version: Version, memberships: &str) -> Option<&str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match version {
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
            Version::Two => controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// The number in a file of one number. No limit is none: `max`, or in version 1 the largest whole
/// number of pages below 2^63 bytes.
fn number(file: &Path) -> Option<u64> {
    let number = fs::read_to_string(file).ok()?.trim().parse().ok();
    number.filter(|number| *number < UNLIMITED_FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       1000000 kB\nMemFree: 5 kB\nSwapTotal:   500000 kB\n\
                           Hugepagesize:       2048 kB\nHugetlb: 0 kB\n";
    const KIB: u64 = 1024;

    /// A machine of made-up files.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().expect("a directory"));
            machine.write("proc/meminfo", MEMINFO);
            for (file, text) in files {
                machine.write(file, text);
            }
            machine
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().expect("files are in directories")).expect("made");
            fs::write(path, text).expect("written");
        }

        /// Memory, memory and swap, and the last part of the group's path.
        fn limit(&self) -> (u64, u64, Option<String>) {
            let limit = MemoryLimit::of_this_process(self.0.path()).expect("there is a meminfo");
            let group = limit.cgroup.as_deref().and_then(Path::file_name);
            let group = group.map(|name| name.to_string_lossy().into_owned());
            (limit.memory, limit.memory_and_swap, group)
        }
    }

    const V2_MOUNT: &str =
        "36 32 0:33 / /sys/fs/cgroup rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        assert_eq!(Machine::new(&[]).limit(), (1_000_000 * KIB, 1_500_000 * KIB, None));
    }

    #[test]
    fn the_least_of_the_group_and_those_around_it_counts() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "0::/user.slice/session/leaf\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/session/memory.max", "1048576\n"),
            ("sys/fs/cgroup/user.slice/session/memory.swap.max", "0\n"),
            ("sys/fs/cgroup/user.slice/session/leaf/memory.max", "2097152\n"),
        ]);
        assert_eq!(machine.limit(), (1 << 20, 1 << 20, Some("session".into())));
        machine.write("sys/fs/cgroup/user.slice/session/memory.swap.max", "4096\n");
        assert_eq!(machine.limit(), (1 << 20, (1 << 20) + 4096, Some("session".into())));
        machine.write("sys/fs/cgroup/user.slice/session/memory.swap.max", "max\n");
        let swap = 500_000 * KIB;
        assert_eq!(machine.limit(), (1 << 20, (1 << 20) + swap, Some("session".into())));
        machine.write("sys/fs/cgroup/user.slice/session/memory.max", "max\n");
        assert_eq!(machine.limit(), (2 << 20, (2 << 20) + swap, Some("leaf".into())));
    }

    #[test]
    fn what_is_left_is_the_least_of_the_machine_and_the_groups() {
        let machine = Machine::new(&[]);
        assert_eq!(available_bytes(machine.0.path()), u64::MAX, "nothing is known");
        machine.write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  2000 kB\n");
        assert_eq!(available_bytes(machine.0.path()), 2000 * KIB);

        machine.write("proc/self/cgroup", "0::/box/inner\n");
        machine.write("proc/self/mountinfo", V2_MOUNT);
        machine.write("sys/fs/cgroup/box/memory.max", "1000000\n");
        machine.write("sys/fs/cgroup/box/memory.current", "900000\n");
        machine.write("sys/fs/cgroup/box/inner/memory.max", "max\n");
        assert_eq!(available_bytes(machine.0.path()), 100_000);
        let statistics = "anon 7\nactive_file 1\ninactive_file 50000\n";
        machine.write("sys/fs/cgroup/box/memory.stat", statistics);
        assert_eq!(available_bytes(machine.0.path()), 150_000, "old pages of files can go");
        machine.write("sys/fs/cgroup/box/memory.current", "2000000\n");
        assert_eq!(available_bytes(machine.0.path()), 0);

        machine.write("proc/self/cgroup", "4:memory:/box\n");
        machine.write("proc/self/mountinfo", V1_MOUNTS);
        machine.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n");
        machine.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "4000\n");
        machine.write("sys/fs/cgroup/memory/box/memory.stat", "total_inactive_file 100\n");
        assert_eq!(available_bytes(machine.0.path()), 1100);
    }

    #[test]
    fn version_one_has_its_own_files() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "5:devices:/x\n4:cpu,memory:/box/inner\n1:name=systemd:/\n0::/\n"),
            ("proc/self/mountinfo", V1_MOUNTS),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "40960\n"),
            ("sys/fs/cgroup/memory/box/memory.memsw.limit_in_bytes", "81920\n"),
            ("sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ]);
        assert_eq!(machine.limit(), (40_960, 81_920, Some("box".into())));
    }

    #[test]
    fn in_version_one_a_limit_of_memory_counts_whatever_that_of_memory_and_swap_is() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "4:memory:/box/inner\n"),
            ("proc/self/mountinfo", V1_MOUNTS),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "40960\n"),
        ]);
        let memsw = "sys/fs/cgroup/memory/box/memory.memsw.limit_in_bytes";
        let swap = 500_000 * KIB;
        let with_all_swap = (40_960, 40_960 + swap, Some("box".into()));
        assert_eq!(machine.limit(), with_all_swap, "swap is not accounted for");
        // As kernels with pages of 4 and of 64 KiB write it.
        for unlimited in ["9223372036854771712", "9223372036854710272", "9223372036854775807"] {
            machine.write(memsw, &format!("{unlimited}\n"));
            assert_eq!(machine.limit(), with_all_swap, "{unlimited}");
        }
        machine.write(memsw, "40960\n");
        assert_eq!(machine.limit(), (40_960, 40_960, Some("box".into())), "no swap at all");
        machine.write(memsw, &format!("{}\n", 1_u64 << 50));
        assert_eq!(machine.limit(), with_all_swap, "more swap than there is");

        // The inner one lowers what the outer one has left, and the other way round.
        let inner = "sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes";
        machine.write(inner, "4096\n");
        assert_eq!(machine.limit(), (4096, 4096 + swap, Some("inner".into())));
        machine.write(inner, "81920\n");
        assert_eq!(machine.limit(), with_all_swap);
    }

    #[test]
    fn in_version_two_swap_is_limited_by_itself() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "0::/box/inner\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/box/memory.max", "max\n"),
            ("sys/fs/cgroup/box/memory.swap.max", "0\n"),
            ("sys/fs/cgroup/box/inner/memory.max", "max\n"),
        ]);
        let memory = 1_000_000 * KIB;
        assert_eq!(machine.limit(), (memory, memory, Some("box".into())));
        machine.write("sys/fs/cgroup/box/inner/memory.max", "40960\n");
        machine.write("sys/fs/cgroup/box/inner/memory.swap.max", "max\n");
        assert_eq!(machine.limit(), (40_960, 40_960, Some("inner".into())));
    }

    #[test]
    fn what_can_be_taken_in_groups_is_what_is_left_without_pages_of_files() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "4:memory:/box/inner\n"),
            ("proc/self/mountinfo", V1_MOUNTS),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700000\n"),
        ]);
        let room = || {
            let (room, group) = room_in_groups(machine.0.path())?;
            Some((room, group.file_name()?.to_string_lossy().into_owned()))
        };
        assert_eq!(room(), None, "no group has a limit");
        machine.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "500000\n");
        machine.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "400000\n");
        assert_eq!(room(), Some((100_000, "box".into())));
        let statistics = "active_file 5\ntotal_inactive_file 10000\ntotal_active_file 20000\n";
        machine.write("sys/fs/cgroup/memory/box/memory.stat", statistics);
        assert_eq!(room(), Some((130_000, "box".into())));
        machine.write("sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes", "90000\n");
        machine.write("sys/fs/cgroup/memory/box/inner/memory.usage_in_bytes", "1000\n");
        assert_eq!(room(), Some((89_000, "inner".into())));

        machine.write("proc/meminfo", "MemTotal: 900 kB\nSwapFree: 40 kB\n");
        assert_eq!(room(), Some((89_000 + 40 * KIB, "inner".into())), "swap counts");
        let inner = "sys/fs/cgroup/memory/box/inner/memory.memsw.limit_in_bytes";
        machine.write(inner, "90500\n");
        assert_eq!(room(), Some((89_500, "inner".into())), "as far as the group allows it");
    }

    #[test]
    fn both_versions_at_a_time() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "4:memory:/one\n0::/two\n"),
            ("proc/self/mountinfo", &format!("{V1_MOUNTS}{V2_MOUNT}")),
            ("sys/fs/cgroup/memory/one/memory.limit_in_bytes", "40960\n"),
            ("sys/fs/cgroup/two/memory.max", "8192\n"),
            ("sys/fs/cgroup/two/memory.swap.max", "0\n"),
        ]);
        assert_eq!(machine.limit(), (8192, 8192, Some("two".into())));
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        // The mount shows the container's group as its top.
        let machine = Machine::new(&[
            ("proc/self/cgroup", "4:memory:/docker/c1/sub\n"),
            (
                "proc/self/mountinfo",
                "35 31 0:32 /docker/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "40960\n"),
            ("sys/fs/cgroup/memory/sub/memory.limit_in_bytes", "81920\n"),
        ]);
        assert_eq!(machine.limit().0, 40_960);
        // The process is outside of what the mount shows.
        machine.write("proc/self/cgroup", "4:memory:/docker/c2\n");
        assert_eq!(machine.limit().0, 40_960);
        machine.write("proc/self/cgroup", "4:memory:/docker/c1/../../x\n");
        assert_eq!(machine.limit().0, 40_960);
    }

    #[test]
    fn a_machine_without_meminfo_is_an_error() {
        let machine = Machine::new(&[("proc/meminfo", "MemFree: 12 kB\n")]);
        let error = MemoryLimit::of_this_process(machine.0.path()).expect_err("no MemTotal");
        assert!(error.to_string().contains("MemTotal"), "{error}");
        let error = MemoryLimit::of_this_process(Path::new("/proc/self/fd")).expect_err("no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn this_machine_has_memory() {
        let limit = MemoryLimit::of_this_process(Path::new("/")).expect("there is a /proc");
        assert!(limit.memory > 0 && limit.memory <= limit.memory_and_swap, "{limit:?}");
    }

    #[test]
    fn huge_pages_that_can_be_had() {
        let directory = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let machine = Machine::new(&[
            (&format!("{directory}/free_hugepages"), "10\n"),
            (&format!("{directory}/resv_hugepages"), "4\n"),
            (&format!("{directory}/nr_overcommit_hugepages"), "3\n"),
            (&format!("{directory}/surplus_hugepages"), "1\n"),
        ]);
        let pages = HugePages { page_bytes: 2 << 20, available: 8 };
        assert_eq!(HugePages::of_default_size(machine.0.path()), Some(pages));
        assert_eq!(HugePages::of_size(machine.0.path(), 2 << 20), Some(pages));
        assert_eq!(HugePages::of_size(machine.0.path(), 1 << 30), None);
    }
}
