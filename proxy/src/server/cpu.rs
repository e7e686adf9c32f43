//! How many workers by default: what the process may really use, which in a container is its CPU quota, not the
//! machine's processors.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

/// The number of workers for `--concurrency`, absent: the CPU affinity, and unless `cpuset_only`, no more than
/// the cgroup's CPU quota rounded up. At least 1.
pub fn default_concurrency(cpuset_only: bool) -> u32 {
    let affinity = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).map_or_else(
        |_| available_parallelism().map_or(1, usize::from),
        |set| (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).count(),
    );
    let affinity = u32::try_from(affinity).unwrap_or(1).max(1);
    if cpuset_only {
        return affinity;
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let quota = quota(Path::new("/sys/fs/cgroup"), &own);
    quota.map_or(affinity, |cpus| affinity.min(cpus.ceil() as u32)).max(1)
}

/// The smallest quota of the process's cgroup and its parents, in processors; `own` is `/proc/self/cgroup`.
fn quota(root: &Path, own: &str) -> Option<f64> {
    let mut smallest: Option<f64> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (base, read): (PathBuf, fn(&Path) -> Option<f64>) = if controllers.is_empty() {
            (root.to_owned(), quota_v2)
        } else if controllers.split(',').any(|name| name == "cpu") {
            (root.join("cpu"), quota_v1)
        } else {
            continue;
        };
        // Inside a container the path may not exist below the mount: then the mount itself is the process's group.
        for group in Path::new(path).ancestors() {
            let group = base.join(group.strip_prefix("/").unwrap_or(group));
            if let Some(cpus) = read(&group) {
                smallest = Some(smallest.map_or(cpus, |other| other.min(cpus)));
            }
        }
    }
    smallest
}

fn quota_v2(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn quota_v1(group: &Path) -> Option<f64> {
    let quota = fs::read_to_string(group.join("cpu.cfs_quota_us")).ok()?;
    let period = fs::read_to_string(group.join("cpu.cfs_period_us")).ok()?;
    ratio(quota.trim(), period.trim())
}

/// `None` for no limit (`max` in version 2, −1 in version 1).
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (i64, i64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_quota_of_the_path_counts() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/a");
        fs::create_dir_all(&pod).unwrap();
        fs::write(root.path().join("pods/cpu.max"), "150000 100000\n").unwrap();
        fs::write(pod.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(quota(root.path(), "0::/pods/a\n"), Some(1.5));
        fs::write(pod.join("cpu.max"), "50000 100000\n").unwrap();
        assert_eq!(quota(root.path(), "0::/pods/a\n"), Some(0.5));
        assert_eq!(quota(root.path(), "0::/elsewhere\n"), None);
    }

    #[test]
    fn version_1_is_read() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("cpu")).unwrap();
        fs::write(root.path().join("cpu/cpu.cfs_quota_us"), "250000\n").unwrap();
        fs::write(root.path().join("cpu/cpu.cfs_period_us"), "100000\n").unwrap();
        assert_eq!(quota(root.path(), "4:cpu,cpuacct:/docker/x\n"), Some(2.5));
        fs::write(root.path().join("cpu/cpu.cfs_quota_us"), "-1\n").unwrap();
        assert_eq!(quota(root.path(), "4:cpu,cpuacct:/docker/x\n"), None);
    }

    #[test]
    fn there_is_always_one_worker() {
        assert!(default_concurrency(false) >= 1);
    }
}
