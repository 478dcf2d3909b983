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
        let mut limit =
            Self { memory: total, memory_and_swap: total.saturating_add(swap), cgroup: None };
        for hierarchy in Hierarchy::of_this_process(root) {
            for group in hierarchy.groups() {
                limit.lower(hierarchy.version, group, swap);
            }
        }
        Ok(limit)
    }

    fn lower(&mut self, version: Version, group: &Path, swap: u64) {
        let bytes = |file: &str| number(&group.join(file));
        let (memory, with_swap) = match version {
            Version::One => (bytes("memory.limit_in_bytes"), bytes("memory.memsw.limit_in_bytes")),
            Version::Two => {
                let (memory, own_swap) = (bytes("memory.max"), bytes("memory.swap.max"));
                let both = memory.zip(own_swap);
                (memory, both.map(|(memory, own)| memory.saturating_add(own.min(swap))))
            }
        };
        let Some(memory) = memory else { return };
        let memory_and_swap = with_swap.unwrap_or_else(|| memory.saturating_add(swap));
        self.memory = self.memory.min(memory);
        if memory_and_swap < self.memory_and_swap {
            self.memory_and_swap = memory_and_swap;
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
        hierarchy.groups().filter_map(|group| room_in_group(hierarchy.version, group))
    });
    groups.fold(machine, u64::min)
}

fn room_in_group(version: Version, group: &Path) -> Option<u64> {
    let (limit, usage, idle) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        Version::Two => ("memory.max", "memory.current", "inactive_file "),
    };
    let limit = number(&group.join(limit))?;
    let usage = number(&group.join(usage))?;
    // Pages of files that nobody has used lately are counted, but go when memory is wanted.
    let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let idle = statistics.lines().find_map(|line| line.strip_prefix(idle)?.trim().parse().ok());
    Some(limit.saturating_sub(usage.saturating_sub(idle.unwrap_or(0))))
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

/// The number in a file of one number. `max`, as for no limit, is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
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
