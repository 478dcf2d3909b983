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
    let Ok(report) = fs::read_to_string("/proc/meminfo") else {
        return u64::MAX;
    };
    let kilobytes = |name: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
    };
    match (kilobytes("MemAvailable"), kilobytes("SwapFree")) {
        (Some(memory), swap) => memory.saturating_add(swap.unwrap_or(0)).saturating_mul(1024),
        (None, _) => u64::MAX,
    }
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
