//! What the machine says of itself: addresses, name servers, users and groups. Read once, at the start, so that the rest
//! is a function of values.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::unistd::{Group, User};

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
            user: |name| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
            group: |name| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()),
        })
    }
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
