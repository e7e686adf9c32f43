//! The pages of the program itself.

use std::ffi::c_void;
use std::io;
use std::ptr;

/// Unmaps, for the time being, what this process has mapped of its program's and libraries' files: starting touches most
/// of it, running a part, which comes back from the page cache as it is touched (`MADV_DONTNEED`, madvise(2)).
///
/// # Errors
/// `/proc` is not there, or the kernel refuses, as it does for locked pages.
pub fn give_back_pages() -> io::Result<()> {
    for (start, length) in clean_files(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: the range is a private mapping of a file that cannot be written and in which no page differs from the
        // file, so that what is read there next is what has been read there before.
        #[expect(unsafe_code, reason = "no crate has madvise for what it did not map")]
        let result = unsafe {
            let address = ptr::with_exposed_provenance_mut::<c_void>(start);
            libc::madvise(address, length, libc::MADV_DONTNEED)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Start and length of the private mappings of files that are read-only and have no page of their own, in memory or
/// swapped out: a relocation, or a debugger's breakpoint, would be lost. `smaps` as in proc(5).
fn clean_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(range) = header(line) {
            mapping = range;
        } else if let Some(own) = line.strip_prefix("Anonymous:") {
            mapping = mapping.filter(|_| own.trim() == "0 kB");
        } else if let Some(own) = line.strip_prefix("Swap:") {
            found.extend(mapping.take().filter(|_| own.trim() == "0 kB"));
        }
    }
    found
}

/// Of a line that begins a mapping: its range, if it is a read-only private one of a file.
fn header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let permissions = fields.next()?;
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let fits = is_file && matches!(permissions, "r--p" | "r-xp");
    Some(fits.then(|| (start, end.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_files_are_given_back() {
        let mapping = |range: &str, permissions: &str, path: &str, own: u32| {
            let (anonymous, swap) = (own % 10, own / 10);
            format!(
                "{range} {permissions} 00001000 fe:00 4711                       {path}\n\
                 Size:                 64 kB\nAnonymous:      {anonymous:>8} kB\n\
                 Swap:           {swap:>8} kB\nSwapPss:             0 kB\nVmFlags: rd mr\n"
            )
        };
        let smaps = [
            mapping("1000-3000", "r--p", "/bin/proxy", 0),
            mapping("3000-8000", "r-xp", "/bin/proxy", 0),
            mapping("8000-9000", "r--p", "/bin/proxy", 4),
            mapping("8000-9000", "r--p", "/bin/proxy", 40),
            mapping("9000-a000", "rw-p", "/bin/proxy", 0),
            mapping("a000-b000", "r--s", "/tmp/shared", 0),
            mapping("b000-c000", "r--p", "", 0),
            mapping("c000-d000", "r-xp", "[vdso]", 0),
        ]
        .concat();
        assert_eq!(clean_files(&smaps), [(0x1000, 0x2000), (0x3000, 0x5000)]);
    }

    #[test]
    fn the_program_goes_on() {
        // Other tests map and unmap files meanwhile.
        let _ = give_back_pages();
        assert_eq!("read".len() + "again".len(), 9);
    }
}
