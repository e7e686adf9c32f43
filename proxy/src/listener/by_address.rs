//! The listeners of one worker by address: where a redirected connection is handed to (`use_original_dst`).
//!
//! Holds nobody alive. A later listener takes an address over; when one goes, only its own entries go.

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};

use rustc_hash::FxHashMap;

use super::WorkerListener;
use super::sockets::SocketHandle;
use crate::config::core::ConfigAddress;

/// See the module.
#[derive(Default)]
pub struct ListenersByAddress(RefCell<FxHashMap<SocketAddr, Entry>>);

struct Entry {
    /// The listener's own address, of which the key may be the IPv4 face.
    address: SocketAddr,
    listener: Weak<WorkerListener>,
}

impl fmt::Debug for ListenersByAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.borrow().keys()).finish()
    }
}

impl ListenersByAddress {
    /// Enters a listener under every address that it has; `sockets` are its own ones, if it has any: they know the
    /// port that the kernel chose.
    pub fn add(&self, listener: &Rc<WorkerListener>, sockets: &[SocketHandle]) {
        for (i, bind) in listener.config.binds.iter().enumerate() {
            let ConfigAddress::Ip { addr, ipv4_compat } = bind.address else { continue };
            let bound = sockets.get(i).and_then(SocketHandle::local_address);
            self.enter(listener, bound.unwrap_or(addr), ipv4_compat);
        }
    }

    fn enter(&self, listener: &Rc<WorkerListener>, address: SocketAddr, ipv4_compat: bool) {
        let address = plain(address);
        let entry = || Entry { address, listener: Rc::downgrade(listener) };
        let mut entries = self.0.borrow_mut();
        entries.insert(address, entry());
        let SocketAddr::V6(v6) = address else { return };
        if !ipv4_compat {
            return;
        }
        if v6.ip().is_unspecified() {
            // A listener of 0.0.0.0 itself is not displaced.
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), v6.port());
            if entries.get(&any).is_none_or(|other| other.address == address) {
                entries.insert(any, entry());
            }
        } else if let Some(v4) = v6.ip().to_ipv4_mapped() {
            entries.insert(SocketAddr::new(v4.into(), v6.port()), entry());
        }
    }

    /// A listener's new version takes over its addresses.
    pub fn replace(&self, before: &WorkerListener, listener: &Rc<WorkerListener>) {
        for entry in self.0.borrow_mut().values_mut() {
            if std::ptr::eq(entry.listener.as_ptr(), before) {
                entry.listener = Rc::downgrade(listener);
            }
        }
    }

    /// A listener takes no more connections.
    pub fn remove(&self, listener: &WorkerListener) {
        self.0.borrow_mut().retain(|_, entry| !std::ptr::eq(entry.listener.as_ptr(), listener));
    }

    /// The listener of an address, else the one of the wildcard address with its port.
    pub fn find(&self, to: SocketAddr) -> Option<Rc<WorkerListener>> {
        let entries = self.0.borrow();
        let get = |address| entries.get(&address)?.listener.upgrade();
        let any = match to.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        get(plain(to)).or_else(|| get(SocketAddr::new(any, to.port())))
    }
}

/// Without the flow label, which is no part of an address.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            SocketAddr::V6(v6)
        }
        SocketAddr::V4(_) => address,
    }
}
