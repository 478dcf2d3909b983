//! What the machine says about its memory, in files that are text.
//!
//! An answer that cannot be had is the one that lets the attempt be made: the system then says no
//! by itself.

use std::fs;

/// Whether the kernel refuses memory beyond what it is sure to have (`vm.overcommit_memory`).
pub(super) fn kernel_keeps_strict_account() -> bool {
    fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2")
}

/// Memory that the machine can give, swap included; an estimate of the kernel's.
pub(super) fn free_memory_bytes() -> u64 {
    let report = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let swap = meminfo_bytes(&report, "SwapFree").unwrap_or(0);
    meminfo_bytes(&report, "MemAvailable").map_or(u64::MAX, |memory| memory.saturating_add(swap))
}

/// The value of a line like `MemTotal:  24684216 kB`.
pub(crate) fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Huge pages of this size that are neither used nor spoken for.
pub(super) fn free_huge_pages(page_bytes: u64) -> u64 {
    let directory = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes / 1024);
    let count = |name: &str| {
        let text = fs::read_to_string(format!("{directory}/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    count("free_hugepages").unwrap_or(0).saturating_sub(count("resv_hugepages").unwrap_or(0))
}
