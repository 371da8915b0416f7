//! What the process itself costs, as the system tells it: [`Usage`], read when someone asks. Its metrics have the
//! names that every Prometheus client library gives them.

/// CPU, memory and files of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is really there, in bytes.
    pub resident_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Open files.
    pub open_files: u64,
    /// The limit on them; `None` without one.
    pub max_files: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// When it began, in seconds since 1970.
    pub started_at: f64,
}

impl Usage {
    /// Reads `/proc/self`; `None` where there is none.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn read() -> Option<Self> {
        use procfs::process::{LimitValue, Process};
        use procfs::{WithCurrentSystemInfo, boot_time_secs, ticks_per_second};

        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        #[expect(clippy::cast_precision_loss, reason = "ticks and seconds are far below 2^52")]
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second().max(1) as f64;
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        let booted = boot_time_secs().ok()? as f64;
        let max_files = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(files) => Some(files),
            LimitValue::Unlimited => None,
        });
        Some(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            open_files: process.fd_count().ok().and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
            max_files,
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            started_at: booted + seconds(stat.starttime),
        })
    }

    /// Only Linux tells.
    #[cfg(not(target_os = "linux"))]
    #[must_use]
    pub fn read() -> Option<Self> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_seen() {
        let usage = Usage::read().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.virtual_bytes >= usage.resident_bytes, "{usage:?}");
        assert!(usage.open_files >= 3 && usage.threads >= 1 && usage.cpu_seconds >= 0.0, "{usage:?}");
        assert!(usage.started_at > 1_600_000_000.0, "{usage:?}");
    }
}
