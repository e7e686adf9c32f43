//! What the machine says of itself: addresses, name servers, users and groups. Read once, at the start, so that the rest
//! is a function of values.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The facts that rules depend on.
#[derive(Debug)]
pub struct Host {
    /// Of all interfaces, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// Of `/etc/resolv.conf`, in its order.
    pub nameservers: io::Result<Vec<IpAddr>>,
    /// The number of a user.
    pub user: fn(&str) -> Option<u32>,
    /// The number of a group.
    pub group: fn(&str) -> Option<u32>,
}

impl Host {
    /// This machine, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel does not tell its addresses.
    pub fn read() -> io::Result<Self> {
        let addresses = getifaddrs()?.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
        });
        Ok(Self {
            addresses: addresses.collect(),
            nameservers: nameservers(Path::new("/etc/resolv.conf")),
            user: |name| number(Path::new("/etc/passwd"), name),
            group: |name| number(Path::new("/etc/group"), name),
        })
    }
}

/// Keeps programs that this one runs from asking other services than the node's files who a user is, as Istio does: in
/// a pod's network, these may never answer.
///
/// # Errors
/// Without the capability SYS_ADMIN.
pub fn hide_name_services() -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none);
    // Some nodes' policies forbid the one, and not the other.
    private.or_else(|_| mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none))?;
    match mount(Some("/dev/null"), "/etc/nsswitch.conf", none, MsFlags::MS_BIND, none) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The number of a name, as passwd and group have it. The file itself is read: the C library may ask the network, which
/// is not there yet, and cannot be asked by a program that is linked statically.
fn number(path: &Path, name: &str) -> Option<u32> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        fields.nth(1)?.parse().ok()
    })
}

/// The addresses of a resolv.conf; a scope (`fe80::1%eth0`) is left out, what is no address passed over.
fn nameservers(path: &Path) -> io::Result<Vec<IpAddr>> {
    let text = std::fs::read_to_string(path)?;
    let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    Ok(words
        .filter(|words| words.first() == Some(&"nameserver"))
        .filter_map(|words| words.get(1)?.split('%').next()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "root:x:0:0::/:\n# a\nmail:x\nmail:x:8:12:\n")
            .expect("written");
        assert_eq!(number(file.path(), "mail"), Some(8));
        assert_eq!(number(file.path(), "root"), Some(0));
        assert_eq!(number(file.path(), "x"), None);
        assert_eq!(number(Path::new("/no/such/file"), "root"), None);
    }

    #[test]
    fn name_servers_are_those_of_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "# nameserver 1.1.1.1\nsearch a\nnameserver 10.0.0.2 # first\n\
            nameserver\tfe80::1%eth0\nnameserver x\nnameserver\n";
        std::fs::write(file.path(), text).expect("written");
        let found = nameservers(file.path()).expect("read");
        assert_eq!(
            found,
            ["10.0.0.2", "fe80::1"].map(|a| a.parse::<IpAddr>().expect("an address"))
        );
    }
}
