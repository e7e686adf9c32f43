//! IP prefixes. From pb `CidrRange`; IPv4-mapped IPv6 addresses count as IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// A prefix with its host bits cleared, or every address of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    /// `None`: every address.
    len: Option<u8>,
}

impl Cidr {
    /// Every address of both families.
    pub const ANY: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: None };

    /// Host bits are cleared, a length beyond the family's is cut to it, as Envoy does.
    pub fn new(address: IpAddr, len: u8) -> Self {
        let (address, len) = match address {
            IpAddr::V4(v4) => {
                let len = len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                (IpAddr::V4((u32::from(v4) & mask).into()), len)
            }
            IpAddr::V6(v6) => {
                let len = len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                (IpAddr::V6((u128::from(v6) & mask).into()), len)
            }
        };
        Self { address, len: Some(len) }
    }

    pub fn is_any(&self) -> bool {
        self.len.is_none()
    }

    /// Bits of the prefix; `ANY` sorts after a /0.
    pub fn len(&self) -> i16 {
        self.len.map_or(-1, i16::from)
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let Some(len) = self.len else { return true };
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(_), ip @ IpAddr::V4(_)) | (IpAddr::V6(_), ip @ IpAddr::V6(_)) => {
                Self::new(ip, len).address == self.address
            }
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len {
            Some(len) => write!(f, "{}/{len}", self.address),
            None => f.write_str("any"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_their_addresses() {
        let ten = Cidr::new("10.1.2.3".parse().unwrap(), 8);
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(ten.contains("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        let all6 = Cidr::new("::1".parse().unwrap(), 0);
        assert!(all6.contains("fe80::1".parse().unwrap()));
        assert!(!all6.contains("1.2.3.4".parse().unwrap()));
        assert!(Cidr::new("1.2.3.4".parse().unwrap(), 99).contains("1.2.3.4".parse().unwrap()));
    }
}
