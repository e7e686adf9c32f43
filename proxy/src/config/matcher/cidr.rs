//! Address ranges: `envoy.config.core.v3.CidrRange` and lists of it.

use std::net::IpAddr;

/// Addresses that share the first `prefix_len` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CidrRange {
    /// Bits after the prefix are zero.
    address: IpAddr,
    prefix_len: u8,
}

impl CidrRange {
    /// A length beyond the address's own is cut to it, as Envoy does.
    pub fn new(address: IpAddr, prefix_len: u32) -> Self {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = prefix_len.min(width) as u8;
        let address = match address {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & mask32(prefix_len)).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & mask128(prefix_len)).into()),
        };
        Self { address, prefix_len }
    }

    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Never true across address families: an IPv4-mapped IPv6 address is an IPv6 one here.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(range), IpAddr::V4(v4)) => {
                u32::from(v4) & mask32(self.prefix_len) == u32::from(range)
            }
            (IpAddr::V6(range), IpAddr::V6(v6)) => {
                u128::from(v6) & mask128(self.prefix_len) == u128::from(range)
            }
            _ => false,
        }
    }
}

fn mask32(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

fn mask128(prefix_len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_widths() {
        let range = |text: &str, len| CidrRange::new(text.parse().unwrap(), len);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(range("10.1.2.3", 8).contains(ip("10.200.0.1")));
        assert!(!range("10.1.2.3", 32).contains(ip("10.1.2.4")));
        assert!(range("1.2.3.4", 0).contains(ip("9.9.9.9")));
        assert!(range("1.2.3.4", 99).contains(ip("1.2.3.4")));
        assert!(range("2001:db8::1", 32).contains(ip("2001:db8:ffff::1")));
        assert!(!range("::", 0).contains(ip("1.2.3.4")));
    }
}
